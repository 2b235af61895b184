#include "model/word_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/pre_tokenizers.h"

namespace tandem {

namespace {

struct Range {
  size_t begin, end;
};

// The next match in `text` from `done` on, where it can be told without the regular expression; at the text's end and
// empty: there is none.
using Shortcut = std::optional<Range> (*)(absl::string_view text, size_t done);

bool IsAscii(char c) { return absl::ascii_isascii(static_cast<unsigned char>(c)); }
bool IsLetter(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)); }
bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

// Most words of most texts are runs of ASCII letters, with a space before them or without, and the published patterns
// take such a run as one word: where one begins, and no letter or mark beyond ASCII may belong to it.
std::optional<Range> PlainWord(absl::string_view text, size_t done) {
  const size_t letters = done + (text[done] == ' ' ? 1 : 0);
  size_t end = letters;
  while (end < text.size() && IsLetter(text[end])) ++end;
  if (end == letters || (end < text.size() && !IsAscii(text[end]))) return std::nullopt;
  return Range{done, end};
}

std::optional<Range> OneDigit(absl::string_view text, size_t done) {
  size_t at = done;
  while (at < text.size() && IsAscii(text[at]) && !IsDigit(text[at])) ++at;
  if (at == text.size()) return Range{at, at};
  if (!IsAscii(text[at])) return std::nullopt;
  return Range{at, at + 1};
}

Shortcut ShortcutOf(absl::string_view pattern) {
  for (const absl::string_view words : {kGpt2Words, kLlama3Words, kQwen2Words, kDeepseek3Words}) {
    if (pattern == words) return PlainWord;
  }
  return pattern == kOneDigit ? OneDigit : nullptr;
}

}  // namespace

struct WordSplitter::Pattern {
  // Without machine code it is slower, not wrong.
  Pattern(pcre2_code* parsed, Shortcut next)
      : code(parsed), is_compiled(pcre2_jit_compile(parsed, PCRE2_JIT_COMPLETE) == 0), shortcut(next) {}
  ~Pattern() { pcre2_code_free(code); }
  pcre2_code* const code;
  const bool is_compiled;
  const Shortcut shortcut;  // Null: none.
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
    compiled.push_back(std::make_unique<Pattern>(code, ShortcutOf(pattern)));
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
      ASSIGN_OR_RETURN(const Range match, NextMatch(text, done, pattern));
      if (match.end <= match.begin || match.begin < done) break;  // None, or an empty one: the rest is one word.
      if (match.begin > done) RETURN_IF_ERROR(Split(text.substr(done, match.begin - done), pattern + 1));
      RETURN_IF_ERROR(Split(text.substr(match.begin, match.end - match.begin), pattern + 1));
      done = match.end;
    }
    return done < text.size() ? Split(text.substr(done), pattern + 1) : absl::OkStatus();
  }

 private:
  // Empty: none.
  absl::StatusOr<Range> NextMatch(absl::string_view text, size_t done, size_t number) {
    const Pattern& pattern = *patterns_[number];
    if (pattern.shortcut != nullptr) {
      if (const std::optional<Range> match = pattern.shortcut(text, done); match.has_value()) return *match;
    }
    auto* const match = pattern.is_compiled ? pcre2_jit_match : pcre2_match;
    const int result = match(pattern.code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), done,
                             PCRE2_NO_UTF_CHECK, matches_[number], nullptr);
    if (result == PCRE2_ERROR_NOMATCH) return Range{text.size(), text.size()};
    if (result < 0) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(result, message, sizeof(message));
      return absl::InvalidArgumentError(
          absl::StrCat("text cannot be tokenized: ", reinterpret_cast<const char*>(message)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(matches_[number]);
    return Range{range[0], range[1]};
  }

  const std::vector<std::unique_ptr<Pattern>>& patterns_;
  const absl::FunctionRef<void(absl::string_view)> on_word_;
  std::vector<pcre2_match_data*> matches_;
};

absl::Status WordSplitter::Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> on_word) const {
  return text.empty() ? absl::OkStatus() : Pass(patterns_, on_word).Split(text, 0);
}

}  // namespace tandem
