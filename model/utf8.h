#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace tandem {

// Length of the valid UTF-8 character at the beginning of `text`; 0 when the bytes there are none
// and never will be; -1 when they are the beginning of one that is cut off. `text` is not empty.
int Utf8Length(absl::string_view text);

// The code point of a valid character of `length` bytes.
uint32_t DecodeUtf8(absl::string_view text, int length);

void AppendUtf8(uint32_t code_point, std::string& out);

// How many bytes at the beginning are valid UTF-8.
size_t ValidUtf8Prefix(absl::string_view text);
inline bool IsValidUtf8(absl::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

}  // namespace tandem
