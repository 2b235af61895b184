#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace tandem {

// Cuts text into words by regular expressions, each applied to what the last one left: every match
// is a word, and so is every stretch between matches.
//
// Thread-safety: thread-safe.
// Ownership: words are views into the text.
class WordSplitter {
 public:
  // INVALID_ARGUMENT for a pattern that PCRE2 does not take.
  static absl::StatusOr<std::unique_ptr<WordSplitter>> Create(absl::Span<const std::string> patterns);
  ~WordSplitter();

  // Calls `on_word` for each word, in order. `text` is valid UTF-8. INVALID_ARGUMENT when a pattern runs into PCRE2's
  // limits on it.
  absl::Status Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> on_word) const;

 private:
  struct Pattern;
  class Pass;
  explicit WordSplitter(std::vector<std::unique_ptr<Pattern>> patterns);
  const std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace tandem
