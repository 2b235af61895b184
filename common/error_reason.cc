#include "common/error_reason.h"

#include <array>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr absl::string_view kReasonUrl = "tandem/reason";
constexpr absl::string_view kRetryAfterUrl = "tandem/retry-after-us";

constexpr std::array<std::pair<ErrorReason, absl::string_view>, 10> kNames = {{
    {ErrorReason::kUnknown, "UNKNOWN"},
    {ErrorReason::kWorkerLost, "WORKER_LOST"},
    {ErrorReason::kWorkerDraining, "WORKER_DRAINING"},
    {ErrorReason::kLinkDown, "LINK_DOWN"},
    {ErrorReason::kPoolExhausted, "POOL_EXHAUSTED"},
    {ErrorReason::kQueueFull, "QUEUE_FULL"},
    {ErrorReason::kRequestTooLong, "REQUEST_TOO_LONG"},
    {ErrorReason::kChecksumMismatch, "CHECKSUM_MISMATCH"},
    {ErrorReason::kKvHoldExpired, "KV_HOLD_EXPIRED"},
    {ErrorReason::kEngineFailed, "ENGINE_FAILED"},
}};

}  // namespace

absl::string_view ErrorReasonName(ErrorReason reason) {
  for (const auto& [value, name] : kNames) {
    if (value == reason) return name;
  }
  return "UNKNOWN";
}

ErrorReason ParseErrorReason(absl::string_view name) {
  for (const auto& [value, known] : kNames) {
    if (known == name) return value;
  }
  return ErrorReason::kUnknown;
}

absl::Status MakeError(absl::StatusCode code, ErrorReason reason, absl::string_view message,
                       std::optional<absl::Duration> retry_after) {
  absl::Status status(code, message);
  status.SetPayload(kReasonUrl, absl::Cord(ErrorReasonName(reason)));
  if (retry_after.has_value()) {
    status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(absl::ToInt64Microseconds(*retry_after))));
  }
  return status;
}

ErrorReason GetErrorReason(const absl::Status& status) {
  absl::optional<absl::Cord> payload = status.GetPayload(kReasonUrl);
  return payload.has_value() ? ParseErrorReason(std::string(*payload)) : ErrorReason::kUnknown;
}

std::optional<absl::Duration> GetRetryAfter(const absl::Status& status) {
  absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  int64_t microseconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &microseconds)) {
    return std::nullopt;
  }
  return absl::Microseconds(microseconds);
}

bool IsRetryable(const absl::Status& status) {
  switch (GetErrorReason(status)) {
    case ErrorReason::kWorkerLost:
    case ErrorReason::kWorkerDraining:
    case ErrorReason::kLinkDown:
    case ErrorReason::kPoolExhausted:
    case ErrorReason::kQueueFull:
    case ErrorReason::kChecksumMismatch:
    case ErrorReason::kEngineFailed:
      return true;
    case ErrorReason::kUnknown:
    case ErrorReason::kRequestTooLong:
    case ErrorReason::kKvHoldExpired:
      return false;
  }
  return false;
}

}  // namespace tandem
