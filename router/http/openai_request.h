#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/request_builder.h"

namespace tandem {

enum class OpenAiEndpoint { kCompletions, kChatCompletions };

// The body of a call to /v1/completions or /v1/chat/completions in native form.
struct OpenAiRequest {
  OpenAiEndpoint endpoint = OpenAiEndpoint::kCompletions;
  // One but for completions of a list of prompts. Alike but for the prompt.
  std::vector<RawRequest> prompts;
  bool stream = false;
  bool include_usage = false;     // A last event with the usage.
  bool continuous_usage = false;  // And usage so far in each event.
  bool calls_tools = false;       // The answer may have tool calls in it.
};

// Unknown fields are ignored, as null ones are. INVALID_ARGUMENT "field: what is wrong" for wrong types and for what
// would change the answer and is not there (echo, suffix, a forced tool choice, ...).
absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(OpenAiEndpoint endpoint, absl::string_view body);

// The body of /tokenize: a prompt (text) or messages. Set but for the prompt: the model's name.
absl::StatusOr<RawRequest> ParseTokenizeRequest(absl::string_view body);

struct DetokenizeRequest {
  std::string model;
  std::vector<TokenId> tokens;
};
absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(absl::string_view body);

}  // namespace tandem
