#include "router/http/json_string.h"

#include <algorithm>
#include <boost/json/serialize.hpp>

#include "absl/strings/str_cat.h"

namespace tandem {

void AppendJsonString(absl::string_view text, std::string& out) {
  // Most pieces of text need no escapes.
  const bool is_plain = std::all_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
  });
  if (is_plain) {
    absl::StrAppend(&out, "\"", text, "\"");
  } else {
    out += boost::json::serialize(boost::json::string_view(text.data(), text.size()));
  }
}

std::string JsonString(absl::string_view text) {
  std::string out;
  AppendJsonString(text, out);
  return out;
}

}  // namespace tandem
