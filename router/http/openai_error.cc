#include "router/http/openai_error.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/error_reason.h"
#include "router/http/json_string.h"

namespace tandem {
namespace {

int HttpStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;  // The client closed the request; nobody reads it.
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

absl::string_view ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 409:
      return "conflict_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

// The field of "field: what is wrong", as the body has it; empty where the message names none.
absl::string_view FieldOf(absl::string_view message) {
  absl::string_view field = message.substr(0, std::min(message.find(": "), message.size()));
  const bool is_name =
      field.size() < message.size() && !field.empty() && std::all_of(field.begin(), field.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '[' || c == ']';
      });
  return is_name ? field : absl::string_view();
}

absl::string_view NameInBody(absl::string_view field) {
  static constexpr std::pair<absl::string_view, absl::string_view> kOthers[] = {
      {"text", "prompt"},   {"token_ids", "prompt"},        {"chat.messages", "messages"},
      {"chat", "messages"}, {"request_id", "X-Request-Id"}, {"request_timeout", "X-Request-Timeout"}};
  for (const auto& [ours, theirs] : kOthers) {
    if (field == ours) return theirs;
  }
  absl::ConsumePrefix(&field, "sampling.");
  return field;
}

}  // namespace

std::string OpenAiErrorBody(int http_status, absl::string_view message, absl::string_view param,
                            absl::string_view code) {
  return absl::StrCat("{\"error\":{\"message\":", JsonString(message), ",\"type\":\"", ErrorType(http_status),
                      "\",\"param\":", param.empty() ? "null" : JsonString(param),
                      ",\"code\":", code.empty() ? "null" : JsonString(code), "}}");
}

std::string OpenAiErrorBody(const absl::Status& status) {
  const absl::string_view field = FieldOf(status.message());
  const absl::string_view param = NameInBody(field);
  absl::string_view code;
  if (status.code() == absl::StatusCode::kNotFound && field == "model") code = "model_not_found";
  if (status.code() == absl::StatusCode::kResourceExhausted) code = "rate_limit_exceeded";
  if (status.code() == absl::StatusCode::kUnauthenticated) code = "invalid_api_key";
  if (GetErrorReason(status) == ErrorReason::kRequestTooLong) code = "context_length_exceeded";
  return OpenAiErrorBody(HttpStatus(status), absl::StrCat(param, status.message().substr(field.size())), param, code);
}

HttpResponse OpenAiError(const absl::Status& status) {
  HttpResponse response{.status = HttpStatus(status), .body = OpenAiErrorBody(status)};
  if (auto retry_after = GetRetryAfter(status); retry_after.has_value()) {
    const double seconds = absl::ToDoubleSeconds(*retry_after);
    response.headers = {{"Retry-After", absl::StrCat(static_cast<int64_t>(std::max(1.0, std::ceil(seconds))))},
                        {"Retry-After-Ms", absl::StrCat(static_cast<int64_t>(std::ceil(seconds * 1000)))}};
  }
  return response;
}

}  // namespace tandem
