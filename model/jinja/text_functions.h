#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/value.h"

namespace tandem::jinja {

// Functions of texts that are filters and methods both.

// Counts UTF-8 characters; a byte that is none stands for itself.
int64_t CharacterCount(absl::string_view text);
// Without the characters of `characters` (null: white space) at its ends.
std::string Strip(absl::string_view text, const Value* characters, bool left, bool right);
std::string Capitalize(absl::string_view text);
std::string Title(absl::string_view text);
// `text` itself where `from` or `to` is missing or `from` is empty; `count` null: all. INVALID_ARGUMENT for a result
// over kMaxTextBytes.
absl::StatusOr<Value> ReplaceText(const std::string& text, const Value* from, const Value* to, const Value* count);

// A dict's pairs, as tuples, and its keys or values, as lists.
Value Items(const Dict& dict);
Value Keys(const Dict& dict, bool values);

}  // namespace tandem::jinja
