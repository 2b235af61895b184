#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// What a process of a topology will take on its host. Each program answers --check with it, on one line, and
// `tandem check` reads that: only the program itself can open the model and knows how it keeps it.
struct ProcessNeeds {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t kv_pages = 0;
  int64_t max_context_tokens = 0;  // Of one request.

  bool operator==(const ProcessNeeds&) const = default;
};

// "weight_bytes=1 kv_bytes=2 kv_pages=3 max_context_tokens=4".
std::string FormatNeeds(const ProcessNeeds& needs);
// INVALID_ARGUMENT unless `line` is what FormatNeeds writes.
absl::StatusOr<ProcessNeeds> ParseNeeds(absl::string_view line);

}  // namespace tandem
