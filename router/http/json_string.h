#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace tandem {

// Appends a text, which is UTF-8, as a JSON string, with its quotes.
void AppendJsonString(absl::string_view text, std::string& out);
std::string JsonString(absl::string_view text);

}  // namespace tandem
