#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "router/http/http_message.h"

namespace tandem {

// A status as OpenAI's clients know errors: {"error": {"message", "type", "param", "code"}} with the HTTP status that
// says whether to try again, and Retry-After where a time is known. `param` is the field that the message begins with,
// named as the HTTP body names it.
HttpResponse OpenAiError(const absl::Status& status);

// The body alone, also for events of a stream that has begun.
std::string OpenAiErrorBody(const absl::Status& status);

// The body for a refusal that has no status of ours. `http_status` decides the type.
std::string OpenAiErrorBody(int http_status, absl::string_view message, absl::string_view param = "",
                            absl::string_view code = "");

}  // namespace tandem
