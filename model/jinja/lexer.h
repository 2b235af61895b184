#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem::jinja {

struct Token {
  enum class Kind {
    kText,
    kOutputBegin,
    kOutputEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 1;
};

// Cuts a template into tokens, with trim_blocks and lstrip_blocks on, as chat templates are
// rendered: the newline after a block tag goes, and so do the blanks before one that stands first
// on its line. INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace tandem::jinja
