#include "router/generate_codec.h"

#include <utility>
#include <vector>

#include "common/rpc/frame_codec.h"

namespace tandem {

void EncodeDuration(absl::Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::ToInt64Seconds(duration));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration % absl::Seconds(1))));
}

v1::FinishReason EncodeFinish(RequestFinish finish) {
  switch (finish) {
    case RequestFinish::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case RequestFinish::kStop:
      return v1::FINISH_REASON_STOP;
    case RequestFinish::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void EncodeUsage(const RequestUsage& usage, v1::Usage* proto) {
  proto->set_prompt_tokens(usage.prompt_tokens);
  proto->set_completion_tokens(usage.completion_tokens);
  proto->set_cached_tokens(usage.cached_tokens);
  proto->set_retries(usage.retries);
  proto->set_prefill_worker(usage.prefill_worker);
  proto->set_decode_worker(usage.decode_worker);
  EncodeDuration(usage.stages.queue, proto->mutable_stages()->mutable_queue());
  EncodeDuration(usage.stages.prefill, proto->mutable_stages()->mutable_prefill());
  EncodeDuration(usage.stages.transfer, proto->mutable_stages()->mutable_transfer());
  EncodeDuration(usage.stages.handover, proto->mutable_stages()->mutable_handover());
  EncodeDuration(usage.stages.decode, proto->mutable_stages()->mutable_decode());
}

RawRequest DecodeRequest(const v1::GenerateRequest& proto) {
  RawRequest raw;
  raw.name = proto.request_id();
  raw.model = proto.model();
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      raw.prompt = proto.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      raw.prompt = std::vector<TokenId>(proto.token_ids().ids().begin(), proto.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat: {
      ChatPrompt chat;
      for (const v1::ChatMessage& message : proto.chat().messages())
        chat.messages.push_back({message.role(), message.content()});
      raw.prompt = std::move(chat);
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  raw.sampling = DecodeSampling(proto.sampling());
  raw.has_seed = proto.sampling().has_seed();
  raw.stops.assign(proto.sampling().stop().begin(), proto.sampling().stop().end());
  raw.priority = proto.priority();
  raw.service_tier = proto.service_tier();
  raw.session = proto.session();
  raw.num_samples = proto.n();
  return raw;
}

}  // namespace tandem
