#include "model/word_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem {

struct WordSplitter::Pattern {
  // Without machine code it is slower, not wrong.
  explicit Pattern(pcre2_code* parsed)
      : code(parsed), is_compiled(pcre2_jit_compile(parsed, PCRE2_JIT_COMPLETE) == 0) {}
  ~Pattern() { pcre2_code_free(code); }
  pcre2_code* const code;
  const bool is_compiled;
};

absl::StatusOr<std::unique_ptr<WordSplitter>> WordSplitter::Create(absl::Span<const std::string> patterns) {
  std::vector<std::unique_ptr<Pattern>> compiled;
  for (const std::string& pattern : patterns) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
    if (code == nullptr) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(error, message, sizeof(message));
      return absl::InvalidArgumentError(absl::StrCat("pre-tokenizer pattern, character ", offset, ": ",
                                                     reinterpret_cast<const char*>(message), ": ", pattern));
    }
    compiled.push_back(std::make_unique<Pattern>(code));
  }
  return std::unique_ptr<WordSplitter>(new WordSplitter(std::move(compiled)));
}

WordSplitter::WordSplitter(std::vector<std::unique_ptr<Pattern>> patterns) : patterns_(std::move(patterns)) {}
WordSplitter::~WordSplitter() = default;

// One split of one text: the matches of each pattern go through the patterns after it at once.
class WordSplitter::Pass {
 public:
  Pass(const std::vector<std::unique_ptr<Pattern>>& patterns, absl::FunctionRef<void(absl::string_view)> on_word)
      : patterns_(patterns), on_word_(on_word) {
    for (size_t i = 0; i < patterns.size(); ++i) matches_.push_back(pcre2_match_data_create(1, nullptr));
  }
  ~Pass() {
    for (pcre2_match_data* match : matches_) pcre2_match_data_free(match);
  }

  absl::Status Split(absl::string_view text, size_t pattern) {
    if (pattern == patterns_.size() || text.size() == 1) {  // One byte is one word, whether it matches or not.
      on_word_(text);
      return absl::OkStatus();
    }
    size_t done = 0;
    while (done < text.size()) {
      const int result = Match(text, done, pattern);
      if (result == PCRE2_ERROR_NOMATCH) break;
      if (result < 0) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(result, message, sizeof(message));
        return absl::InvalidArgumentError(
            absl::StrCat("text cannot be tokenized: ", reinterpret_cast<const char*>(message)));
      }
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(matches_[pattern]);
      if (range[1] <= range[0] || range[0] < done) break;  // An empty match: the rest is one word.
      if (range[0] > done) RETURN_IF_ERROR(Split(text.substr(done, range[0] - done), pattern + 1));
      RETURN_IF_ERROR(Split(text.substr(range[0], range[1] - range[0]), pattern + 1));
      done = range[1];
    }
    return done < text.size() ? Split(text.substr(done), pattern + 1) : absl::OkStatus();
  }

 private:
  int Match(absl::string_view text, size_t begin, size_t pattern) {
    auto* const match = patterns_[pattern]->is_compiled ? pcre2_jit_match : pcre2_match;
    return match(patterns_[pattern]->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin,
                 PCRE2_NO_UTF_CHECK, matches_[pattern], nullptr);
  }

  const std::vector<std::unique_ptr<Pattern>>& patterns_;
  const absl::FunctionRef<void(absl::string_view)> on_word_;
  std::vector<pcre2_match_data*> matches_;
};

absl::Status WordSplitter::Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> on_word) const {
  return text.empty() ? absl::OkStatus() : Pass(patterns_, on_word).Split(text, 0);
}

}  // namespace tandem
