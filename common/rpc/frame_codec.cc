#include "common/rpc/frame_codec.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/rpc/status_codec.h"

namespace tandem {
namespace {

void EncodeError(const absl::Status& status, v1::LegError* proto) {
  proto->set_code(static_cast<int>(status.code()));
  proto->set_message(std::string(status.message()));
  *proto->mutable_detail() = ErrorDetailOf(status);
}

absl::Status DecodeError(const v1::LegError& proto) {
  return StatusWithDetail(proto.code(), proto.message(), proto.detail());
}

v1::FinishReason EncodeFinish(LegFinish finish) {
  switch (finish) {
    case LegFinish::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case LegFinish::kStop:
      return v1::FINISH_REASON_STOP;
    case LegFinish::kLength:
      return v1::FINISH_REASON_LENGTH;
    case LegFinish::kHandedOver:
      return v1::FINISH_REASON_HANDED_OVER;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

LegFinish DecodeFinish(v1::FinishReason finish) {
  switch (finish) {
    case v1::FINISH_REASON_STOP:
      return LegFinish::kStop;
    case v1::FINISH_REASON_LENGTH:
      return LegFinish::kLength;
    case v1::FINISH_REASON_HANDED_OVER:
      return LegFinish::kHandedOver;
    default:  // Also values of newer versions.
      return LegFinish::kNone;
  }
}

SampledToken DecodeToken(const v1::GeneratedToken& proto) {
  SampledToken token{.token = proto.token()};
  if (proto.has_logprob()) token.logprob = proto.logprob();
  for (const v1::TokenLogprob& entry : proto.top()) token.top.push_back({entry.token(), entry.logprob()});
  return token;
}

void EncodeFormat(const OutputFormat& format, v1::ResponseFormat* proto) {
  switch (format.kind) {
    case OutputFormat::Kind::kJsonSchema:
      proto->set_json_schema(format.text);
      break;
    case OutputFormat::Kind::kRegex:
      proto->set_regex(format.text);
      break;
    case OutputFormat::Kind::kLark:
      proto->set_grammar(format.text);
      break;
  }
  switch (format.reasoning) {
    case OutputFormat::Reasoning::kNone:
      break;
    case OutputFormat::Reasoning::kMayComeFirst:
      proto->set_reasoning(v1::ResponseFormat::REASONING_MAY_COME_FIRST);
      break;
    case OutputFormat::Reasoning::kIsOpen:
      proto->set_reasoning(v1::ResponseFormat::REASONING_IS_OPEN);
      break;
  }
}

// One without a text where none is set, or one of a newer version: request_builder and engines refuse it.
std::shared_ptr<const OutputFormat> DecodeFormat(const v1::ResponseFormat& proto) {
  OutputFormat format;
  switch (proto.format_case()) {
    case v1::ResponseFormat::kJsonSchema:
      format = {OutputFormat::Kind::kJsonSchema, proto.json_schema()};
      break;
    case v1::ResponseFormat::kRegex:
      format = {OutputFormat::Kind::kRegex, proto.regex()};
      break;
    case v1::ResponseFormat::kGrammar:
      format = {OutputFormat::Kind::kLark, proto.grammar()};
      break;
    case v1::ResponseFormat::FORMAT_NOT_SET:
      break;
  }
  if (proto.reasoning() == v1::ResponseFormat::REASONING_MAY_COME_FIRST) {
    format.reasoning = OutputFormat::Reasoning::kMayComeFirst;
  } else if (proto.reasoning() == v1::ResponseFormat::REASONING_IS_OPEN) {
    format.reasoning = OutputFormat::Reasoning::kIsOpen;
  }
  return std::make_shared<const OutputFormat>(std::move(format));
}

}  // namespace

void EncodeSampling(const SamplingParams& sampling, v1::SamplingParams* proto) {
  proto->set_temperature(sampling.temperature);
  proto->set_top_k(sampling.top_k);
  proto->set_top_p(sampling.top_p);
  proto->set_min_p(sampling.min_p);
  proto->set_repetition_penalty(sampling.repetition_penalty);
  proto->set_presence_penalty(sampling.presence_penalty);
  proto->set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [token, bias] : sampling.logit_bias) (*proto->mutable_logit_bias())[token] = bias;
  proto->set_seed(sampling.seed);
  proto->set_max_tokens(sampling.max_tokens);
  proto->set_min_tokens(sampling.min_tokens);
  proto->set_ignore_eos(sampling.ignore_eos);
  for (TokenId token : sampling.stop_token_ids) proto->add_stop_token_ids(token);
  if (sampling.logprobs.has_value()) proto->set_logprobs(*sampling.logprobs);
  if (sampling.format != nullptr) EncodeFormat(*sampling.format, proto->mutable_response_format());
}

SamplingParams DecodeSampling(const v1::SamplingParams& proto) {
  SamplingParams sampling;
  sampling.temperature = proto.temperature();
  sampling.top_k = proto.top_k();
  if (proto.has_top_p()) sampling.top_p = proto.top_p();
  sampling.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) sampling.repetition_penalty = proto.repetition_penalty();
  sampling.presence_penalty = proto.presence_penalty();
  sampling.frequency_penalty = proto.frequency_penalty();
  for (const auto& [token, bias] : proto.logit_bias()) sampling.logit_bias.emplace_back(token, bias);
  sampling.seed = proto.seed();
  sampling.max_tokens = proto.max_tokens();
  sampling.min_tokens = proto.min_tokens();
  sampling.ignore_eos = proto.ignore_eos();
  sampling.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  if (proto.has_logprobs()) sampling.logprobs = proto.logprobs();
  if (proto.has_response_format()) sampling.format = DecodeFormat(proto.response_format());
  return sampling;
}

void EncodeToken(const SampledToken& token, v1::GeneratedToken* proto) {
  proto->set_token(token.token);
  if (token.logprob.has_value()) proto->set_logprob(*token.logprob);
  for (const TokenLogprob& entry : token.top) {
    v1::TokenLogprob* top = proto->add_top();
    top->set_token(entry.token);
    top->set_logprob(entry.logprob);
  }
}

void EncodeCommands(const CommandFrame& frame, v1::CommandFrame* proto) {
  for (const StartLeg& leg : frame.starts) {
    v1::StartRequest* start = proto->add_starts();
    start->set_id(leg.id.value());
    start->set_request_id(leg.name);
    start->set_trace_parent(leg.trace_parent);
    start->mutable_prompt()->Add(leg.tokens.begin(), leg.tokens.end());
    start->set_output_tokens(leg.output_tokens);
    EncodeSampling(leg.sampling, start->mutable_sampling());
    start->set_priority(leg.priority);
    if (leg.remaining < absl::InfiniteDuration()) {
      start->set_remaining_us(std::max<int64_t>(1, absl::ToInt64Microseconds(leg.remaining)));
    }
    if (leg.due < absl::InfiniteDuration()) {
      const int64_t due_us = absl::ToInt64Microseconds(leg.due);
      start->set_due_us(due_us == 0 ? 1 : due_us);
    }
    start->set_peer_worker(leg.peer_worker);
    start->set_peer_incarnation(leg.peer.value());
    start->set_handover_id(leg.handover.value());
  }
  for (const CancelLeg& leg : frame.cancels) {
    v1::CancelLeg* cancel = proto->add_cancels();
    cancel->set_id(leg.id.value());
    cancel->set_retarget_worker(leg.retarget_worker);
    cancel->set_retarget_incarnation(leg.retarget.value());
    cancel->set_handover_id(leg.handover.value());
  }
}

CommandFrame DecodeCommands(const v1::CommandFrame& proto) {
  CommandFrame frame;
  for (const v1::StartRequest& start : proto.starts()) {
    StartLeg leg;
    leg.id = RequestId(start.id());
    leg.name = start.request_id();
    leg.trace_parent = start.trace_parent();
    leg.tokens.assign(start.prompt().begin(), start.prompt().end());
    leg.output_tokens = std::clamp<int>(start.output_tokens(), 0, static_cast<int>(leg.tokens.size()));
    leg.sampling = DecodeSampling(start.sampling());
    leg.priority = start.priority();
    if (start.remaining_us() > 0) leg.remaining = absl::Microseconds(start.remaining_us());
    if (start.due_us() != 0) leg.due = absl::Microseconds(start.due_us());
    leg.peer_worker = start.peer_worker();
    leg.peer = Incarnation(start.peer_incarnation());
    leg.handover = HandoverId(start.handover_id());
    frame.starts.push_back(std::move(leg));
  }
  for (const v1::CancelLeg& cancel : proto.cancels()) {
    frame.cancels.push_back({RequestId(cancel.id()), Incarnation(cancel.retarget_incarnation()),
                             cancel.retarget_worker(), HandoverId(cancel.handover_id())});
  }
  return frame;
}

void EncodeEvents(const EventFrame& frame, v1::EventFrame* proto) {
  for (const LegEvent& event : frame.events) {
    v1::RequestEvent* out = proto->add_events();
    out->set_id(event.id.value());
    for (const SampledToken& token : event.tokens) EncodeToken(token, out->add_tokens());
    out->set_finish_reason(EncodeFinish(event.finish));
    if (!event.error.ok()) EncodeError(event.error, out->mutable_error());
    if (!event.handover_error.ok()) EncodeError(event.handover_error, out->mutable_handover_error());
    out->set_handover_id(event.handover.value());
    out->set_taken_over(event.taken_over);
    out->set_cached_tokens(event.cached_tokens);
    out->set_queue_us(absl::ToInt64Microseconds(event.queue));
    out->set_prefill_us(absl::ToInt64Microseconds(event.prefill));
    out->set_transfer_us(absl::ToInt64Microseconds(event.transfer));
  }
}

EventFrame DecodeEvents(const v1::EventFrame& proto) {
  EventFrame frame;
  frame.events.reserve(proto.events_size());
  for (const v1::RequestEvent& in : proto.events()) {
    LegEvent& event = frame.events.emplace_back();
    event.id = RequestId(in.id());
    for (const v1::GeneratedToken& token : in.tokens()) event.tokens.push_back(DecodeToken(token));
    event.finish = DecodeFinish(in.finish_reason());
    if (in.has_error()) event.error = DecodeError(in.error());
    if (in.has_handover_error()) event.handover_error = DecodeError(in.handover_error());
    event.handover = HandoverId(in.handover_id());
    event.taken_over = in.taken_over();
    event.cached_tokens = in.cached_tokens();
    event.queue = absl::Microseconds(in.queue_us());
    event.prefill = absl::Microseconds(in.prefill_us());
    event.transfer = absl::Microseconds(in.transfer_us());
  }
  return frame;
}

}  // namespace tandem
