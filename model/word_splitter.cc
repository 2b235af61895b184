#include "model/word_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace tandem {

struct WordSplitter::Pattern {
  explicit Pattern(pcre2_code* compiled) : code(compiled) {}
  ~Pattern() { pcre2_code_free(code); }
  pcre2_code* const code;
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
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // Without JIT it is slower, not wrong.
  }
  return std::unique_ptr<WordSplitter>(new WordSplitter(std::move(compiled)));
}

WordSplitter::WordSplitter(std::vector<std::unique_ptr<Pattern>> patterns) : patterns_(std::move(patterns)) {}
WordSplitter::~WordSplitter() = default;

absl::StatusOr<std::vector<absl::string_view>> WordSplitter::Split(absl::string_view text) const {
  std::vector<absl::string_view> words;
  if (!text.empty()) words.push_back(text);
  for (const auto& pattern : patterns_) {
    pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
    absl::Cleanup free_match = [match] { pcre2_match_data_free(match); };
    std::vector<absl::string_view> parts;
    parts.reserve(words.size() * 2);
    for (absl::string_view word : words) {
      size_t done = 0;
      while (done < word.size()) {
        int result = pcre2_match(pattern->code, reinterpret_cast<PCRE2_SPTR>(word.data()), word.size(), done,
                                 PCRE2_NO_UTF_CHECK, match, nullptr);
        if (result == PCRE2_ERROR_NOMATCH) break;
        if (result < 0) {
          PCRE2_UCHAR message[256];
          pcre2_get_error_message(result, message, sizeof(message));
          return absl::InvalidArgumentError(
              absl::StrCat("text cannot be tokenized: ", reinterpret_cast<const char*>(message)));
        }
        PCRE2_SIZE* range = pcre2_get_ovector_pointer(match);
        if (range[1] <= range[0] || range[0] < done) break;  // An empty match: the rest is one word.
        if (range[0] > done) parts.push_back(word.substr(done, range[0] - done));
        parts.push_back(word.substr(range[0], range[1] - range[0]));
        done = range[1];
      }
      if (done < word.size()) parts.push_back(word.substr(done));
    }
    words = std::move(parts);
  }
  return words;
}

}  // namespace tandem
