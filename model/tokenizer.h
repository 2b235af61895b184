#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/ids.h"
#include "model/tokenizer_spec.h"
#include "model/word_splitter.h"

namespace tandem {

// Turns text into token ids and ids into the bytes they stand for.
//
// Thread-safety: thread-safe; immutable after Create.
// Ownership: owns copies of everything in the spec.
class Tokenizer {
 public:
  // INVALID_ARGUMENT for a spec that contradicts itself (no tokens, bad pattern). Bytes of a text for
  // which there is no token are left out, as the reference library does.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  // Special tokens in the text become their ids. A beginning-of-sequence token is put in front when
  // the model wants one and `add_bos`. INVALID_ARGUMENT when the text is no UTF-8.
  absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text, bool add_bos = true) const;

  // The bytes of one token; may be part of a UTF-8 character. Control tokens are empty unless
  // `with_special`. Empty for ids that are no token.
  absl::string_view TokenBytes(TokenId token, bool with_special = false) const;

  // The text of whole output, invalid bytes replaced; see Detokenizer for streams.
  std::string Decode(absl::Span<const TokenId> tokens, bool with_special = false) const;

  int vocabulary_size() const { return static_cast<int>(bytes_.size()); }
  // -1 when the model has none.
  TokenId bos() const { return bos_; }
  // The id of the token with exactly this text; -1 when there is none.
  TokenId FindToken(absl::string_view text) const;
  // SentencePiece models begin text with a space that is not part of it.
  bool strips_first_space() const { return strips_first_space_; }

 private:
  struct Merge {
    int32_t rank;
    TokenId result;
  };
  struct Special {
    std::string text;
    TokenId id;
    bool strip_left, strip_right;
  };

  Tokenizer() = default;
  absl::Status Build(TokenizerSpec spec);
  absl::Status BuildBytes(const TokenizerSpec& spec);
  // Ids of the text between two special tokens.
  absl::Status EncodeSegment(absl::string_view text, bool is_first, std::vector<TokenId>& out) const;
  // `symbols` is memory to work in, kept from word to word.
  void EncodeWord(absl::string_view word, std::vector<TokenId>& symbols, std::vector<TokenId>& out) const;
  // Most words of a text are one token each: which tokens are found by their bytes alone, without merging. `all`: the
  // model has it so for every token, merges or not.
  void MarkWholeWords(bool all);
  void MergeSymbols(std::vector<TokenId>& symbols) const;
  // The best merge of two neighbours; null when there is none.
  const Merge* FindMerge(TokenId left, TokenId right) const;

  TokenizerSpec::Kind kind_ = TokenizerSpec::Kind::kByteLevelBpe;
  TokenizerSpec::SpacePrefix space_prefix_ = TokenizerSpec::SpacePrefix::kNever;
  bool normalise_nfc_ = false, prefix_even_before_space_ = false, add_bos_ = false;
  bool strips_first_space_ = false;
  TokenId bos_ = -1, unknown_ = -1;
  std::vector<std::string> bytes_;  // What each token stands for, special ones included.
  std::vector<bool> is_special_;
  std::vector<bool> is_whole_word_;
  std::array<TokenId, 256> whole_bytes_;                    // As is_whole_word_, of words of one byte; else -1.
  std::array<TokenId, 256> byte_tokens_;                    // Token of each single byte; -1 where there is none.
  absl::flat_hash_map<std::string, TokenId> ids_by_bytes_;  // Without special tokens.
  absl::flat_hash_map<uint64_t, Merge> merges_;             // Key: left id << 32 | right id.
  std::array<std::vector<Special>, 256> specials_;          // By first byte, longest first.
  std::unique_ptr<WordSplitter> splitter_;
};

// Turns a stream of tokens into text that is valid UTF-8 in every piece.
//
// Thread-safety: not thread-safe; one per output stream.
// Ownership: borrows the tokenizer.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool with_special = false)
      : tokenizer_(tokenizer), with_special_(with_special), strip_space_(tokenizer.strips_first_space()) {}
  // Appends to `out` the characters that this token completes. Bytes that can be no character any
  // more become U+FFFD.
  void Append(TokenId token, std::string& out);
  // Appends U+FFFD for a character that stayed incomplete.
  void Finish(std::string& out);

 private:
  void Drain(std::string& out, bool at_end);
  const Tokenizer& tokenizer_;
  const bool with_special_;
  bool strip_space_;
  std::string pending_;
};

}  // namespace tandem
