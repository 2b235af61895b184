#include "common/process_needs.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace tandem {

std::string FormatNeeds(const ProcessNeeds& needs) {
  return absl::StrCat("weight_bytes=", needs.weight_bytes, " kv_bytes=", needs.kv_bytes, " kv_pages=", needs.kv_pages,
                      " max_context_tokens=", needs.max_context_tokens);
}

absl::StatusOr<ProcessNeeds> ParseNeeds(absl::string_view line) {
  ProcessNeeds needs;
  for (absl::string_view setting : absl::StrSplit(line, ' ')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(setting, absl::MaxSplits('=', 1));
    int64_t* value = parts[0] == "weight_bytes"         ? &needs.weight_bytes
                     : parts[0] == "kv_bytes"           ? &needs.kv_bytes
                     : parts[0] == "kv_pages"           ? &needs.kv_pages
                     : parts[0] == "max_context_tokens" ? &needs.max_context_tokens
                                                        : nullptr;
    if (value == nullptr || parts.size() != 2 || !absl::SimpleAtoi(parts[1], value)) {
      return absl::InvalidArgumentError(absl::StrCat("not an answer to --check: ", line));
    }
  }
  if (FormatNeeds(needs) != line) return absl::InvalidArgumentError(absl::StrCat("not an answer to --check: ", line));
  return needs;
}

}  // namespace tandem
