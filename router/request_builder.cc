#include "router/request_builder.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "router/tracing.h"

namespace tandem {
namespace {

constexpr int kMaxPriority = 100;
constexpr int kMaxSamples = 16, kMaxStops = 16, kMaxLogprobs = 20;
constexpr size_t kMaxStopBytes = 1024, kMaxNameBytes = 256, kMaxFormatBytes = 64 << 10;

absl::Status CheckRange(absl::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": must be from ", low, " to ", high, ", got ", value));
}

absl::Status CheckSampling(const SamplingParams& sampling, int vocabulary) {
  RETURN_IF_ERROR(CheckRange("sampling.temperature", sampling.temperature, 0, 100));
  RETURN_IF_ERROR(CheckRange("sampling.top_k", sampling.top_k, 0, 1e9));
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.top_p: must be over 0 and at most 1, got ", sampling.top_p));
  }
  if (!(sampling.min_p >= 0 && sampling.min_p < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.min_p: must be from 0 and under 1, got ", sampling.min_p));
  }
  if (!(sampling.repetition_penalty > 0) || !std::isfinite(sampling.repetition_penalty)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.repetition_penalty: must be over 0, got ", sampling.repetition_penalty));
  }
  RETURN_IF_ERROR(CheckRange("sampling.presence_penalty", sampling.presence_penalty, -2, 2));
  RETURN_IF_ERROR(CheckRange("sampling.frequency_penalty", sampling.frequency_penalty, -2, 2));
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < 0 || token >= vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias: token id ", token, " is not in the vocabulary of ", vocabulary));
    }
    RETURN_IF_ERROR(CheckRange("sampling.logit_bias", bias, -100, 100));
  }
  RETURN_IF_ERROR(CheckRange("sampling.max_tokens", sampling.max_tokens, 0, 1e9));
  RETURN_IF_ERROR(CheckRange("sampling.min_tokens", sampling.min_tokens, 0, 1e9));
  if (sampling.max_tokens > 0 && sampling.min_tokens > sampling.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.min_tokens: ", sampling.min_tokens, " is over max_tokens, ", sampling.max_tokens));
  }
  if (sampling.logprobs.has_value())
    RETURN_IF_ERROR(CheckRange("sampling.logprobs", *sampling.logprobs, 0, kMaxLogprobs));
  if (sampling.format != nullptr) {
    const std::string& text = sampling.format->text;
    if (text.empty() || text.size() > kMaxFormatBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.response_format: set one of json_schema, regex and grammar, of 1 to ", kMaxFormatBytes,
                       " bytes, got ", text.size()));
    }
    if (text.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError("sampling.response_format: must not have a zero byte in it");
    }
  }
  for (TokenId token : sampling.stop_token_ids) {
    if (token < 0 || token >= vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.stop_token_ids: ", token, " is not in the vocabulary of ", vocabulary));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizedPrompt> RequestBuilder::Tokenize(const RawRequest& raw) const {
  TokenizedPrompt prompt;
  std::vector<TokenId>& tokens = prompt.tokens;
  if (const auto* text = std::get_if<std::string>(&raw.prompt)) {
    absl::StatusOr<std::vector<TokenId>> encoded = tokenizer_.Encode(*text);
    if (!encoded.ok()) return absl::InvalidArgumentError(absl::StrCat("text: ", encoded.status().message()));
    tokens = *std::move(encoded);
  } else if (const auto* ids = std::get_if<std::vector<TokenId>>(&raw.prompt)) {
    tokens = *ids;
  } else if (const auto* chat = std::get_if<ChatPrompt>(&raw.prompt)) {
    if (chat->messages.empty()) return absl::InvalidArgumentError("chat.messages: must not be empty");
    if (chat_template_ == nullptr) {
      return absl::InvalidArgumentError("chat: this model has no chat template; send text or token_ids");
    }
    absl::StatusOr<std::string> rendered = chat_template_->Render(*chat, /*add_generation_prompt=*/true);
    if (!rendered.ok()) return absl::InvalidArgumentError(absl::StrCat("chat.messages: ", rendered.status().message()));
    prompt.opens_reasoning = absl::EndsWith(absl::StripTrailingAsciiWhitespace(*rendered), "<think>");
    // Templates write the beginning-of-sequence token themselves where the model wants one.
    absl::StatusOr<std::vector<TokenId>> encoded = tokenizer_.Encode(*rendered, /*add_bos=*/false);
    if (!encoded.ok()) return absl::InvalidArgumentError(absl::StrCat("chat.messages: ", encoded.status().message()));
    tokens = *std::move(encoded);
  } else {
    return absl::InvalidArgumentError("prompt: set one of text, token_ids and chat");
  }
  if (tokens.empty()) return absl::InvalidArgumentError("prompt: must have at least one token");
  for (TokenId token : tokens) {
    if (token < 0 || token >= tokenizer_.vocabulary_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids: ", token, " is not in the vocabulary of ", tokenizer_.vocabulary_size()));
    }
  }
  return prompt;
}

OutputFormat::Reasoning RequestBuilder::ReasoningOf(const RawRequest& raw, const TokenizedPrompt& prompt) const {
  if (prompt.opens_reasoning) return OutputFormat::Reasoning::kIsOpen;
  const bool is_chat = std::holds_alternative<ChatPrompt>(raw.prompt);
  return is_chat && chat_template_->reasons() ? OutputFormat::Reasoning::kMayComeFirst : OutputFormat::Reasoning::kNone;
}

absl::Status RequestBuilder::CheckModel(absl::string_view model) const {
  if (model.empty() || model == served_name_) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("model: \"", model, "\" is not served; this router serves \"", served_name_, "\""));
}

absl::Status RequestBuilder::ApplyTier(absl::string_view name, Request& request) const {
  if (tiers_.empty()) return absl::OkStatus();  // Clients say such things to everybody.
  const bool is_default = name.empty() || name == "auto" || name == "default";
  std::vector<std::string> names;
  for (const ServiceTier& tier : tiers_) {
    if (tier.name == (is_default ? "default" : name)) {
      request.priority = std::clamp(request.priority + tier.priority, -kMaxPriority, kMaxPriority);
      request.ttft_limit = tier.ttft;
      request.tpot_limit = tier.tpot;
      return absl::OkStatus();
    }
    names.push_back(tier.name);
  }
  if (is_default) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("service_tier: there is no \"", name, "\"; there are: ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<Request> RequestBuilder::Build(RawRequest raw) const {
  RETURN_IF_ERROR(CheckModel(raw.model));
  if (raw.name.size() > kMaxNameBytes) return absl::InvalidArgumentError("request_id: must be at most 256 bytes");
  RETURN_IF_ERROR(CheckRange("priority", raw.priority, -kMaxPriority, kMaxPriority));
  RETURN_IF_ERROR(CheckRange("n", raw.num_samples, 0, kMaxSamples));
  RETURN_IF_ERROR(CheckSampling(raw.sampling, tokenizer_.vocabulary_size()));
  if (raw.stops.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.stop: at most ", kMaxStops, " strings, got ", raw.stops.size()));
  }
  for (const std::string& stop : raw.stops) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.stop: strings must have 1 to ", kMaxStopBytes, " bytes"));
    }
  }
  Request request;
  ASSIGN_OR_RETURN(TokenizedPrompt prompt, Tokenize(raw));
  request.prompt = std::move(prompt.tokens);
  request.opens_reasoning = prompt.opens_reasoning;
  request.name =
      raw.name.empty() ? absl::StrCat("req-", absl::Hex(DrawRandomId(), absl::kZeroPad16)) : std::move(raw.name);
  request.sampling = std::move(raw.sampling);
  if (request.sampling.format != nullptr) {
    OutputFormat format = *request.sampling.format;
    format.reasoning = ReasoningOf(raw, prompt);
    request.sampling.format = std::make_shared<const OutputFormat>(std::move(format));
  }
  if (!raw.has_seed) request.sampling.seed = DrawRandomId();
  request.stops = std::move(raw.stops);
  if (!raw.trace_parent.empty()) request.trace = ParseTraceParent(raw.trace_parent);
  request.priority = raw.priority;
  if (!raw.session.empty()) request.affinity = XXH3_64bits(raw.session.data(), raw.session.size()) | 1;
  RETURN_IF_ERROR(ApplyTier(raw.service_tier, request));
  request.num_samples = std::max(1, raw.num_samples);
  return request;
}

}  // namespace tandem
