#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

class GgufFile;

// What SentencePiece writes for a space: U+2581.
inline constexpr absl::string_view kSpaceMark = "\xE2\x96\x81";

// Everything that defines a tokenizer, whichever file it came from.
struct TokenizerSpec {
  enum class Kind {
    kByteLevelBpe,  // GPT-2 style: tokens are written in a byte-to-printable alphabet.
    kSentencePiece  // Spaces as U+2581, unknown characters as <0xNN> byte tokens.
  };
  enum class TokenType { kNormal, kUnknown, kControl, kUserDefined, kByte };
  // Where text gets a space in front; the text between two special tokens is a segment.
  enum class SpacePrefix { kNever, kFirstSegment, kEachSegment };
  struct Token {
    std::string text;
    TokenType type = TokenType::kNormal;
    float score = 0;  // kSentencePiece without merges: higher merges first.
    // A special token takes the white space before or after it with it.
    bool strip_left = false, strip_right = false;
  };

  Kind kind = Kind::kByteLevelBpe;
  std::vector<Token> tokens;                                // Index is the token id; holes have an empty text.
  std::vector<std::pair<std::string, std::string>> merges;  // Best first.
  // Regular expressions that cut text into words, applied one after the other to what the last
  // left.
  std::vector<std::string> pre_tokenizers;
  bool normalise_nfc = false;
  SpacePrefix space_prefix = SpacePrefix::kNever;
  bool prefix_even_before_space = false;  // Else a segment that begins with a space gets none.
  bool add_bos = false;
  bool ignore_merges = false;  // A word that is itself a token is not merged (Llama 3).
  int32_t bos = -1;
  int32_t unknown = -1;

  static absl::StatusOr<TokenizerSpec> FromGguf(const GgufFile& gguf);
  // From tokenizer.json. UNIMPLEMENTED names a part that Tandem does not do.
  static absl::StatusOr<TokenizerSpec> FromJson(absl::string_view tokenizer_json);
};

}  // namespace tandem
