#include "router/http/openai_request.h"

#include <boost/json/monotonic_resource.hpp>
#include <boost/json/parse.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/json_fields.h"
#include "router/http/openai_chat.h"
#include "router/http/openai_format.h"

namespace tandem {
namespace {

namespace json = boost::json;

constexpr int kDefaultCompletionTokens = 16;  // As OpenAI's.
constexpr int kMaxPrompts = 1024;
// Of what each prompt of a call gets a copy; router/request_builder has stricter limits.
constexpr size_t kMaxListed = 1024;

absl::StatusOr<std::vector<TokenId>> TokenIds(absl::string_view field, const json::array& array) {
  std::vector<TokenId> ids;
  ids.reserve(array.size());
  for (const json::value& item : array) {
    const std::optional<int64_t> id = WholeNumber(item);
    if (!id.has_value()) return WrongType(absl::StrCat(field, "[", ids.size(), "]"), "a token id", item);
    if (*id < 0 || *id > std::numeric_limits<TokenId>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": ", *id, " is no token id"));
    }
    ids.push_back(static_cast<TokenId>(*id));
  }
  return ids;
}

void GetStops(Fields& fields, RawRequest& raw) {
  const json::value* value = fields.Find("stop");
  if (value == nullptr) return;
  if (value->is_string()) {
    raw.stops = {std::string(View(value->get_string()))};
    return;
  }
  if (!value->is_array()) return fields.Keep(WrongType("stop", "a string or an array of strings", *value));
  if (value->get_array().size() > kMaxListed) return fields.Refuse("stop", absl::StrCat("at most ", kMaxListed));
  for (const json::value& item : value->get_array()) {
    if (!item.is_string()) return fields.Keep(WrongType("stop", "an array of strings", item));
    raw.stops.emplace_back(View(item.get_string()));
  }
}

void GetLogitBias(Fields& fields, SamplingParams& sampling) {
  const json::value* value = fields.Find("logit_bias");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.Keep(WrongType("logit_bias", "an object", *value));
  if (value->get_object().size() > kMaxListed) {
    return fields.Refuse("logit_bias", absl::StrCat("at most ", kMaxListed, " tokens"));
  }
  for (const auto& [key, bias] : value->get_object()) {
    TokenId token;
    if (!absl::SimpleAtoi(absl::string_view(key.data(), key.size()), &token)) {
      return fields.Refuse("logit_bias", absl::StrCat("\"", std::string(key), "\" is no token id"));
    }
    if (!bias.is_number()) return fields.Keep(WrongType("logit_bias", "numbers as values", bias));
    sampling.logit_bias.emplace_back(token, bias.to_number<float>());
  }
}

// OpenAI's chat has a switch and a number of alternatives, its completions one number.
void GetLogprobs(Fields& fields, OpenAiEndpoint endpoint, SamplingParams& sampling) {
  int count = 0;
  if (endpoint == OpenAiEndpoint::kCompletions) {
    if (fields.Find("logprobs") == nullptr) return;
    fields.Get("logprobs", count);
    sampling.logprobs = count;
    return;
  }
  bool wanted = false;
  fields.Get("logprobs", wanted);
  fields.Get("top_logprobs", count);
  if (wanted) {
    sampling.logprobs = count;
  } else if (count > 0) {
    fields.Refuse("top_logprobs", "needs logprobs to be true");
  }
}

void GetSampling(Fields& fields, OpenAiEndpoint endpoint, RawRequest& raw) {
  SamplingParams& sampling = raw.sampling;
  sampling.temperature = 1;
  fields.Get("temperature", sampling.temperature);
  fields.Get("top_p", sampling.top_p);
  fields.Get("top_k", sampling.top_k);
  if (sampling.top_k == -1) sampling.top_k = 0;  // What others call "all of them".
  fields.Get("min_p", sampling.min_p);
  fields.Get("repetition_penalty", sampling.repetition_penalty);
  fields.Get("presence_penalty", sampling.presence_penalty);
  fields.Get("frequency_penalty", sampling.frequency_penalty);
  if (const json::value* seed = fields.Find("seed"); seed != nullptr) {
    const std::optional<int64_t> number = WholeNumber(*seed);
    if (!number.has_value() && !seed->is_uint64()) fields.Keep(WrongType("seed", "an integer", *seed));
    sampling.seed = number.has_value() ? static_cast<uint64_t>(*number) : seed->is_uint64() ? seed->get_uint64() : 0;
    raw.has_seed = true;
  }
  if (endpoint == OpenAiEndpoint::kCompletions) sampling.max_tokens = kDefaultCompletionTokens;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (fields.Find(name) == nullptr) continue;
    fields.Get(name, sampling.max_tokens);
    if (sampling.max_tokens < 1) fields.Refuse(name, absl::StrCat("must be at least 1, got ", sampling.max_tokens));
  }
  fields.Get("min_tokens", sampling.min_tokens);
  fields.Get("ignore_eos", sampling.ignore_eos);
  if (const json::value* ids = fields.Find("stop_token_ids"); ids != nullptr) {
    if (!ids->is_array()) return fields.Keep(WrongType("stop_token_ids", "an array of token ids", *ids));
    if (ids->get_array().size() > kMaxListed) {
      return fields.Refuse("stop_token_ids", absl::StrCat("at most ", kMaxListed));
    }
    absl::StatusOr<std::vector<TokenId>> tokens = TokenIds("stop_token_ids", ids->get_array());
    if (!tokens.ok()) return fields.Keep(tokens.status());
    sampling.stop_token_ids = *std::move(tokens);
  }
  GetStops(fields, raw);
  GetLogitBias(fields, sampling);
  GetLogprobs(fields, endpoint, sampling);
  GetOutputFormat(fields, sampling);
}

using Prompt = decltype(RawRequest::prompt);

// One string, one list of token ids, or a list of either.
absl::StatusOr<std::vector<Prompt>> ParsePrompts(const Fields& body) {
  const json::value* value = body.Find("prompt");
  if (value == nullptr) return absl::InvalidArgumentError("prompt: is missing");
  constexpr absl::string_view kExpected = "a string, token ids, or an array of these";
  std::vector<Prompt> prompts;
  if (value->is_string()) {
    prompts.emplace_back(std::string(View(value->get_string())));
    return prompts;
  }
  if (!value->is_array()) return WrongType("prompt", kExpected, *value);
  const json::array& array = value->get_array();
  if (array.empty()) return absl::InvalidArgumentError("prompt: must not be empty");
  if (array[0].is_number()) {
    ASSIGN_OR_RETURN(std::vector<TokenId> ids, TokenIds("prompt", array));
    prompts.emplace_back(std::move(ids));
    return prompts;
  }
  if (array.size() > kMaxPrompts) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: at most ", kMaxPrompts, " prompts, got ", array.size()));
  }
  for (const json::value& item : array) {
    if (item.is_string()) {
      prompts.emplace_back(std::string(View(item.get_string())));
    } else if (item.is_array()) {
      ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                       TokenIds(absl::StrCat("prompt[", prompts.size(), "]"), item.get_array()));
      prompts.emplace_back(std::move(ids));
    } else {
      return WrongType(absl::StrCat("prompt[", prompts.size(), "]"), "a string or token ids", item);
    }
  }
  return prompts;
}

void RefuseWhatIsNotThere(Fields& fields) {
  bool echo = false;
  fields.Get("echo", echo);
  if (echo) fields.Refuse("echo", "is not supported");
  std::string suffix;
  fields.Get("suffix", suffix);
  if (!suffix.empty()) fields.Refuse("suffix", "is not supported");
  int samples = 1;
  fields.Get("n", samples);
  int best_of = samples;
  fields.Get("best_of", best_of);
  if (best_of != samples) fields.Refuse("best_of", "is not supported other than equal to n");
  if (fields.Find("functions") != nullptr) fields.Refuse("functions", "is not supported: send tools");
  if (fields.Find("prompt_logprobs") != nullptr) fields.Refuse("prompt_logprobs", "is not supported");
}

absl::StatusOr<json::value> ParseObject(absl::string_view body, json::monotonic_resource& memory) {
  json::error_code error;
  // Schemas are as deep as llguidance takes them, and stand a few levels deep in a body.
  json::value value = json::parse({body.data(), body.size()}, error, &memory, {.max_depth = 160});
  if (error) return absl::InvalidArgumentError(absl::StrCat("the body is no valid JSON: ", error.message()));
  if (!value.is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
  return value;
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(OpenAiEndpoint endpoint, absl::string_view body) {
  json::monotonic_resource memory;
  ASSIGN_OR_RETURN(json::value value, ParseObject(body, memory));
  Fields fields(value.get_object());
  OpenAiRequest request{.endpoint = endpoint};
  RawRequest raw;
  fields.Get("model", raw.model);
  fields.Get("priority", raw.priority);
  fields.Get("service_tier", raw.service_tier);
  raw.num_samples = 1;
  fields.Get("n", raw.num_samples);
  if (raw.num_samples < 1) fields.Refuse("n", absl::StrCat("must be at least 1, got ", raw.num_samples));
  fields.Get("stream", request.stream);
  if (const json::value* options = fields.Find("stream_options"); options != nullptr) {
    if (!options->is_object()) {
      fields.Keep(WrongType("stream_options", "an object", *options));
    } else {
      Fields inner(options->get_object(), "stream_options.");
      inner.Get("include_usage", request.include_usage);
      inner.Get("continuous_usage_stats", request.continuous_usage);
      fields.Keep(inner.status());
    }
  }
  GetSampling(fields, endpoint, raw);
  RefuseWhatIsNotThere(fields);
  RETURN_IF_ERROR(fields.status());
  if (endpoint == OpenAiEndpoint::kChatCompletions) {
    ASSIGN_OR_RETURN(ChatPrompt chat, ParseChatPrompt(value.get_object()));
    request.calls_tools = !chat.tools.empty();
    raw.prompt = std::move(chat);
    request.prompts.push_back(std::move(raw));
    return request;
  }
  ASSIGN_OR_RETURN(std::vector<Prompt> prompts, ParsePrompts(fields));
  for (Prompt& prompt : prompts) {
    RawRequest& one = request.prompts.emplace_back(raw);
    one.prompt = std::move(prompt);
  }
  return request;
}

absl::StatusOr<RawRequest> ParseTokenizeRequest(absl::string_view body) {
  json::monotonic_resource memory;
  ASSIGN_OR_RETURN(json::value value, ParseObject(body, memory));
  Fields fields(value.get_object());
  RawRequest raw;
  fields.Get("model", raw.model);
  RETURN_IF_ERROR(fields.status());
  if (fields.Find("messages") != nullptr) {
    ASSIGN_OR_RETURN(raw.prompt, ParseChatPrompt(value.get_object()));
    return raw;
  }
  std::string prompt;
  if (fields.Find("prompt") == nullptr) return absl::InvalidArgumentError("prompt: is missing, and so is messages");
  fields.Get("prompt", prompt);
  RETURN_IF_ERROR(fields.status());
  raw.prompt = std::move(prompt);
  return raw;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(absl::string_view body) {
  json::monotonic_resource memory;
  ASSIGN_OR_RETURN(json::value value, ParseObject(body, memory));
  Fields fields(value.get_object());
  DetokenizeRequest request;
  fields.Get("model", request.model);
  RETURN_IF_ERROR(fields.status());
  const json::value* tokens = fields.Find("tokens");
  if (tokens == nullptr) return absl::InvalidArgumentError("tokens: is missing");
  if (!tokens->is_array()) return WrongType("tokens", "an array of token ids", *tokens);
  ASSIGN_OR_RETURN(request.tokens, TokenIds("tokens", tokens->get_array()));
  return request;
}

}  // namespace tandem
