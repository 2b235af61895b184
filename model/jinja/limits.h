#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace tandem::jinja {

// What one rendering may use: far more than a chat template needs, and little enough that a hostile one hurts nobody.
inline constexpr int64_t kMaxSteps = 1'000'000;            // Statements and expressions.
inline constexpr size_t kMaxTextBytes = size_t{16} << 20;  // One text, and the output.
inline constexpr size_t kMaxItems = 1'000'000;             // One list.
inline constexpr size_t kMaxBytes = size_t{1} << 30;       // All texts and lists that are made, added up.
inline constexpr int kMaxNesting = 64;                     // Lists and dicts in one another.

inline absl::Status TextTooLong() { return absl::InvalidArgumentError("a text is over 16 MiB"); }
inline absl::Status ListTooLong() { return absl::InvalidArgumentError("a list is too long"); }

}  // namespace tandem::jinja
