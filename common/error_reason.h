#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace tandem {

// Why something failed, for programs. Travels as payload of absl::Status and as ErrorDetail in
// protos; retry decisions read this and never the text.
enum class ErrorReason {
  kUnknown = 0,
  kWorkerLost,        // The process, its stream or its link died.
  kWorkerDraining,    // Takes no new work.
  kLinkDown,          // The pair has no usable link.
  kPoolExhausted,     // Too few KV pages, now.
  kQueueFull,         // Admission limit reached.
  kRequestTooLong,    // Can never fit.
  kChecksumMismatch,  // Pushed KV differs from what was sent.
  kKvHoldExpired,     // Prefill held the KV as long as it may.
  kEngineFailed,      // The model step failed.
};

absl::string_view ErrorReasonName(ErrorReason reason);
ErrorReason ParseErrorReason(absl::string_view name);  // kUnknown for other names.

// A status that carries `reason`, and how long to wait before a retry where that is known.
absl::Status MakeError(absl::StatusCode code, ErrorReason reason, absl::string_view message,
                       std::optional<absl::Duration> retry_after = std::nullopt);

ErrorReason GetErrorReason(const absl::Status& status);
std::optional<absl::Duration> GetRetryAfter(const absl::Status& status);

// True when the same request may succeed on another worker, or on this one later.
bool IsRetryable(const absl::Status& status);

}  // namespace tandem
