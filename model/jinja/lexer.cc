#include "model/jinja/lexer.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/utf8.h"

namespace tandem::jinja {
namespace {

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      RETURN_IF_ERROR(ReadText());
      if (at_ < source_.size()) RETURN_IF_ERROR(ReadTag());
    }
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", what));
  }
  void Add(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  bool StartsWith(absl::string_view text) const { return absl::StartsWith(source_.substr(at_), text); }
  void Advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + count, '\n'));
    at_ += count;
  }

  absl::Status ReadText() {
    size_t end = at_;
    while (end < source_.size()) {
      absl::string_view rest = source_.substr(end);
      if (absl::StartsWith(rest, "{{") || absl::StartsWith(rest, "{%") || absl::StartsWith(rest, "{#")) break;
      ++end;
    }
    std::string text(source_.substr(at_, end - at_));
    const bool block = end < source_.size() && source_[end + 1] != '{';
    const char sign = end + 2 < source_.size() ? source_[end + 2] : ' ';
    if (trim_next_) text = std::string(absl::StripLeadingAsciiWhitespace(text));
    if (end < source_.size() && sign == '-') {
      text = std::string(absl::StripTrailingAsciiWhitespace(text));
    } else if (block && sign != '+') {
      size_t line_begin = text.rfind('\n');
      size_t begin = line_begin == std::string::npos ? 0 : line_begin + 1;
      bool first_on_line = line_begin != std::string::npos || at_line_begin_;
      if (first_on_line && text.find_first_not_of(" \t", begin) == std::string::npos) text.erase(begin);
    }
    trim_next_ = false;
    at_line_begin_ = end > at_ ? source_[end - 1] == '\n' : at_line_begin_;
    if (!text.empty()) Add(Token::Kind::kText, std::move(text));
    Advance(end - at_);
    return absl::OkStatus();
  }

  // After a tag's end: "-" trims what follows; a block tag swallows one newline.
  void AfterTag(bool trim, bool block) {
    trim_next_ = trim;
    at_line_begin_ = false;
    if (!block) return;
    if (StartsWith("\r\n")) {
      Advance(2);
      at_line_begin_ = true;
    } else if (StartsWith("\n")) {
      Advance(1);
      at_line_begin_ = true;
    }
  }

  absl::Status ReadTag() {
    if (StartsWith("{#")) {
      size_t end = source_.find("#}", at_ + 2);
      if (end == absl::string_view::npos) return Error("comment without end");
      bool trim = end > at_ + 2 && source_[end - 1] == '-';
      Advance(end + 2 - at_);
      AfterTag(trim, /*block=*/true);
      return absl::OkStatus();
    }
    const bool block = StartsWith("{%");
    Add(block ? Token::Kind::kBlockBegin : Token::Kind::kOutputBegin, "");
    Advance(2);
    if (StartsWith("-") || StartsWith("+")) Advance(1);
    const absl::string_view close = block ? "%}" : "}}";
    int braces = 0;
    while (true) {
      while (at_ < source_.size() && absl::ascii_isspace(source_[at_])) Advance(1);
      if (at_ >= source_.size()) return Error("tag without end");
      bool trim = (StartsWith("-") || StartsWith("+")) && absl::StartsWith(source_.substr(at_ + 1), close);
      if (trim || (StartsWith(close) && braces == 0)) {
        bool dash = trim && source_[at_] == '-';
        Add(block ? Token::Kind::kBlockEnd : Token::Kind::kOutputEnd, "");
        Advance(trim ? 3 : 2);
        AfterTag(dash, block);
        return absl::OkStatus();
      }
      if (source_[at_] == '{') ++braces;
      if (source_[at_] == '}') --braces;
      RETURN_IF_ERROR(ReadToken());
    }
  }

  absl::Status ReadToken() {
    const char c = source_[at_];
    if (c == '\'' || c == '"') return ReadString(c);
    size_t end = at_;
    if (absl::ascii_isdigit(c)) {
      bool is_float = false;
      while (end < source_.size() && (absl::ascii_isdigit(source_[end]) || source_[end] == '_' ||
                                      (source_[end] == '.' && !is_float && end + 1 < source_.size() &&
                                       absl::ascii_isdigit(source_[end + 1])))) {
        is_float |= source_[end] == '.';
        ++end;
      }
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
        if (exponent < source_.size() && absl::ascii_isdigit(source_[exponent])) {
          while (exponent < source_.size() && absl::ascii_isdigit(source_[exponent])) ++exponent;
          end = exponent;
          is_float = true;
        }
      }
      std::string digits(source_.substr(at_, end - at_));
      digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
      Add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, std::move(digits));
      Advance(end - at_);
      return absl::OkStatus();
    }
    if (absl::ascii_isalpha(c) || c == '_') {
      while (end < source_.size() && (absl::ascii_isalnum(source_[end]) || source_[end] == '_')) ++end;
      Add(Token::Kind::kName, std::string(source_.substr(at_, end - at_)));
      Advance(end - at_);
      return absl::OkStatus();
    }
    for (absl::string_view op : {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "<",
                                 ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ".", ",", ":", "|"}) {
      if (!StartsWith(op)) continue;
      Add(Token::Kind::kOperator, std::string(op));
      Advance(op.size());
      return absl::OkStatus();
    }
    return Error(absl::StrCat("unexpected character \"", source_.substr(at_, 1), "\""));
  }

  absl::Status ReadString(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text += source_[i];
        continue;
      }
      switch (source_[++i]) {
        case 'n':
          text += '\n';
          break;
        case 't':
          text += '\t';
          break;
        case 'r':
          text += '\r';
          break;
        case '\n':
          break;
        case 'u': {
          uint32_t code = 0;
          int digits = 0;
          for (; digits < 4 && i + 1 < source_.size() && absl::ascii_isxdigit(source_[i + 1]); ++digits) {
            char digit = absl::ascii_tolower(source_[++i]);
            code = code * 16 + (absl::ascii_isdigit(digit) ? digit - '0' : digit - 'a' + 10);
          }
          if (digits < 4) return Error("\\u needs four hexadecimal digits");
          AppendUtf8(code, text);
          break;
        }
        case '\\':
        case '\'':
        case '"':
          text += source_[i];
          break;
        default:
          text += '\\';
          text += source_[i];
      }
    }
    if (i >= source_.size()) return Error("string without end");
    Add(Token::Kind::kString, std::move(text));
    Advance(i + 1 - at_);
    return absl::OkStatus();
  }

  const absl::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool trim_next_ = false, at_line_begin_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  // As Jinja, which drops one newline at the end of a template.
  if (absl::EndsWith(source, "\n")) source.remove_suffix(1);
  return Lexer(source).Run();
}

}  // namespace tandem::jinja
