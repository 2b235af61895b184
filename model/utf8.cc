#include "model/utf8.h"

#include <cstring>

namespace tandem {

int Utf8Length(absl::string_view text) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  uint8_t first = byte(0);
  if (first < 0x80) return 1;
  int length = first >= 0xF0 && first <= 0xF4  ? 4
               : first >= 0xE0 && first < 0xF0 ? 3
               : first >= 0xC2 && first < 0xE0 ? 2
                                               : 0;
  for (int i = 1; i < length; ++i) {
    if (i >= text.size()) return -1;
    uint8_t low = 0x80, high = 0xBF;
    if (i == 1) {  // No overlong forms, no surrogates, nothing over U+10FFFF.
      if (first == 0xE0) low = 0xA0;
      if (first == 0xED) high = 0x9F;
      if (first == 0xF0) low = 0x90;
      if (first == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return 0;
  }
  return length;
}

uint32_t DecodeUtf8(absl::string_view text, int length) {
  auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  switch (length) {
    case 1:
      return byte(0);
    case 2:
      return ((byte(0) & 31) << 6) | (byte(1) & 63);
    case 3:
      return ((byte(0) & 15) << 12) | ((byte(1) & 63) << 6) | (byte(2) & 63);
    default:
      return ((byte(0) & 7) << 18) | ((byte(1) & 63) << 12) | ((byte(2) & 63) << 6) | (byte(3) & 63);
  }
}

void AppendUtf8(uint32_t code_point, std::string& out) {
  auto add = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code_point < 0x80) {
    add(code_point);
  } else if (code_point < 0x800) {
    add(0xC0 | (code_point >> 6));
    add(0x80 | (code_point & 63));
  } else if (code_point < 0x10000) {
    add(0xE0 | (code_point >> 12));
    add(0x80 | ((code_point >> 6) & 63));
    add(0x80 | (code_point & 63));
  } else {
    add(0xF0 | (code_point >> 18));
    add(0x80 | ((code_point >> 12) & 63));
    add(0x80 | ((code_point >> 6) & 63));
    add(0x80 | (code_point & 63));
  }
}

size_t ValidUtf8Prefix(absl::string_view text) {
  absl::string_view rest = text;
  while (!rest.empty()) {
    uint64_t eight;
    if (rest.size() >= sizeof(eight)) {
      std::memcpy(&eight, rest.data(), sizeof(eight));
      if ((eight & 0x8080808080808080) == 0) {  // All ASCII, as most text is.
        rest.remove_prefix(sizeof(eight));
        continue;
      }
    }
    int length = Utf8Length(rest);
    if (length <= 0) break;
    rest.remove_prefix(length);
  }
  return text.size() - rest.size();
}

}  // namespace tandem
