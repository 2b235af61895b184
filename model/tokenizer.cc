#include "model/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "model/utf8.h"

namespace tandem {
namespace {

// GPT-2's printable alphabet: code point of each byte.
std::array<uint32_t, 256> ByteAlphabet() {
  std::array<uint32_t, 256> alphabet;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

// The bytes that a byte-level token's text stands for; the text itself where it leaves the
// alphabet.
std::string BytesOfByteLevel(absl::string_view text) {
  static const auto* const kReverse = [] {
    auto* reverse = new absl::flat_hash_map<uint32_t, char>();
    std::array<uint32_t, 256> alphabet = ByteAlphabet();
    for (int byte = 0; byte < 256; ++byte) (*reverse)[alphabet[byte]] = static_cast<char>(byte);
    return reverse;
  }();
  std::string bytes;
  absl::string_view rest = text;
  while (!rest.empty()) {
    int length = Utf8Length(rest);
    if (length <= 0) return std::string(text);
    auto entry = kReverse->find(DecodeUtf8(rest, length));
    if (entry == kReverse->end()) return std::string(text);
    bytes += entry->second;
    rest.remove_prefix(length);
  }
  return bytes;
}

std::string BytesOfSentencePiece(const TokenizerSpec::Token& token) {
  int byte = 0;
  if (token.type == TokenizerSpec::TokenType::kByte && token.text.size() == 6 &&
      absl::SimpleHexAtoi(token.text.substr(3, 2), &byte)) {
    return std::string(1, static_cast<char>(byte));
  }
  return absl::StrReplaceAll(token.text, {{kSpaceMark, " "}});
}

uint64_t PairKey(TokenId left, TokenId right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

// Unicode's White_Space, as tokenizer.json's lstrip and rstrip mean it.
bool IsSpaceCharacter(uint32_t point) {
  return (point >= 9 && point <= 13) || point == 0x20 || point == 0x85 || point == 0xA0 || point == 0x1680 ||
         (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 || point == 0x202F ||
         point == 0x205F || point == 0x3000;
}

absl::string_view StripLeadingSpace(absl::string_view text) {
  while (!text.empty()) {
    int length = Utf8Length(text);
    if (length <= 0 || !IsSpaceCharacter(DecodeUtf8(text, length))) break;
    text.remove_prefix(length);
  }
  return text;
}

absl::string_view StripTrailingSpace(absl::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
    int length = Utf8Length(text.substr(begin));
    if (length <= 0 || !IsSpaceCharacter(DecodeUtf8(text.substr(begin), length))) break;
    text = text.substr(0, begin);
  }
  return text;
}

// Words longer than this are merged with a heap, whose cost grows near linearly.
constexpr size_t kLongWord = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  RETURN_IF_ERROR(tokenizer->Build(std::move(spec)));
  return tokenizer;
}

absl::Status Tokenizer::BuildBytes(const TokenizerSpec& spec) {
  bytes_.resize(spec.tokens.size());
  is_special_.resize(spec.tokens.size());
  byte_tokens_.fill(-1);
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    const TokenizerSpec::Token& token = spec.tokens[i];
    TokenId id = static_cast<TokenId>(i);
    bool parsed =
        token.type == TokenizerSpec::TokenType::kControl || token.type == TokenizerSpec::TokenType::kUserDefined;
    is_special_[i] =
        token.type == TokenizerSpec::TokenType::kControl || token.type == TokenizerSpec::TokenType::kUnknown;
    if (parsed || token.type == TokenizerSpec::TokenType::kUnknown) {
      bytes_[i] = token.text;
    } else {
      bytes_[i] =
          kind_ == TokenizerSpec::Kind::kByteLevelBpe ? BytesOfByteLevel(token.text) : BytesOfSentencePiece(token);
    }
    if (token.text.empty()) continue;
    if (parsed) {
      specials_[static_cast<uint8_t>(token.text[0])].push_back({token.text, id, token.strip_left, token.strip_right});
    } else if (token.type == TokenizerSpec::TokenType::kByte) {
      byte_tokens_[static_cast<uint8_t>(bytes_[i][0])] = id;
    } else if (token.type == TokenizerSpec::TokenType::kNormal) {
      ids_by_bytes_.emplace(bytes_[i], id);
      if (kind_ == TokenizerSpec::Kind::kByteLevelBpe && bytes_[i].size() == 1) {
        byte_tokens_[static_cast<uint8_t>(bytes_[i][0])] = id;
      }
    }
  }
  for (auto& group : specials_) {
    std::stable_sort(group.begin(), group.end(),
                     [](const Special& a, const Special& b) { return a.text.size() > b.text.size(); });
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Build(TokenizerSpec spec) {
  if (spec.tokens.empty()) return absl::InvalidArgumentError("tokenizer has no tokens");
  kind_ = spec.kind;
  normalise_nfc_ = spec.normalise_nfc;
  space_prefix_ = spec.space_prefix;
  prefix_even_before_space_ = spec.prefix_even_before_space;
  strips_first_space_ =
      space_prefix_ != TokenizerSpec::SpacePrefix::kNever && kind_ == TokenizerSpec::Kind::kSentencePiece;
  add_bos_ = spec.add_bos;
  bos_ = spec.bos;
  unknown_ = spec.unknown;
  RETURN_IF_ERROR(BuildBytes(spec));
  absl::flat_hash_map<std::string, TokenId> ids_by_text;
  for (size_t i = 0; i < spec.tokens.size(); ++i) ids_by_text.emplace(spec.tokens[i].text, static_cast<TokenId>(i));
  int32_t rank = 0;
  for (const auto& [left, right] : spec.merges) {
    auto left_id = ids_by_text.find(left), right_id = ids_by_text.find(right);
    auto result = ids_by_text.find(absl::StrCat(left, right));
    if (left_id == ids_by_text.end() || right_id == ids_by_text.end() || result == ids_by_text.end()) continue;
    merges_.emplace(PairKey(left_id->second, right_id->second), Merge{rank++, result->second});
  }
  if (spec.merges.empty() && kind_ == TokenizerSpec::Kind::kSentencePiece) {
    // SentencePiece merges any two neighbours that make a token, by score: write that as merges.
    std::vector<TokenId> by_score;
    for (size_t i = 0; i < spec.tokens.size(); ++i) {
      if (spec.tokens[i].type == TokenizerSpec::TokenType::kNormal) by_score.push_back(static_cast<TokenId>(i));
    }
    std::stable_sort(by_score.begin(), by_score.end(),
                     [&](TokenId a, TokenId b) { return spec.tokens[a].score > spec.tokens[b].score; });
    for (TokenId id : by_score) {
      absl::string_view bytes = bytes_[id];
      for (size_t cut = 1; cut < bytes.size(); ++cut) {
        auto left = ids_by_bytes_.find(bytes.substr(0, cut)), right = ids_by_bytes_.find(bytes.substr(cut));
        if (left == ids_by_bytes_.end() || right == ids_by_bytes_.end()) continue;
        merges_.emplace(PairKey(left->second, right->second), Merge{rank, id});
      }
      ++rank;
    }
  }
  ASSIGN_OR_RETURN(splitter_, WordSplitter::Create(spec.pre_tokenizers));
  MarkWholeWords(spec.ignore_merges);
  return absl::OkStatus();
}

void Tokenizer::MarkWholeWords(bool all) {
  whole_bytes_.fill(-1);
  is_whole_word_.assign(bytes_.size(), all);
  std::vector<TokenId> symbols, out, whole;
  for (const auto& [bytes, id] : ids_by_bytes_) {
    out.clear();
    EncodeWord(bytes, symbols, out);
    if (out.size() == 1 && out[0] == id) whole.push_back(id);
  }
  for (TokenId id : whole) {
    is_whole_word_[id] = true;
    if (bytes_[id].size() == 1) whole_bytes_[static_cast<uint8_t>(bytes_[id][0])] = id;
  }
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(absl::string_view text, bool add_bos) const {
  if (size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("byte ", valid, " of the text is no UTF-8"));
  }
  std::vector<TokenId> out;
  if (add_bos && add_bos_ && bos_ >= 0) out.push_back(bos_);
  size_t segment_begin = 0;
  for (size_t i = 0; i < text.size();) {
    if (specials_[static_cast<uint8_t>(text[i])].empty()) {
      ++i;
      continue;
    }
    const Special* found = nullptr;
    for (const Special& special : specials_[static_cast<uint8_t>(text[i])]) {
      if (absl::StartsWith(text.substr(i), special.text)) {
        found = &special;
        break;
      }
    }
    if (found == nullptr) {
      ++i;
      continue;
    }
    absl::string_view segment = text.substr(segment_begin, i - segment_begin);
    if (found->strip_left) segment = StripTrailingSpace(segment);
    RETURN_IF_ERROR(EncodeSegment(segment, segment_begin == 0, out));
    out.push_back(found->id);
    i += found->text.size();
    if (found->strip_right) i = text.size() - StripLeadingSpace(text.substr(i)).size();
    segment_begin = i;
  }
  RETURN_IF_ERROR(EncodeSegment(text.substr(segment_begin), segment_begin == 0, out));
  return out;
}

absl::Status Tokenizer::EncodeSegment(absl::string_view text, bool is_first, std::vector<TokenId>& out) const {
  if (text.empty()) return absl::OkStatus();
  std::string normalised;
  if (normalise_nfc_) {
    utf8proc_uint8_t* composed = nullptr;
    utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), text.size(), &composed,
                                         static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (size < 0) return absl::InternalError(absl::StrCat("NFC of the text: ", utf8proc_errmsg(size)));
    normalised.assign(reinterpret_cast<char*>(composed), size);
    free(composed);
    text = normalised;
  }
  if (kind_ == TokenizerSpec::Kind::kSentencePiece && absl::StrContains(text, kSpaceMark)) {
    normalised = absl::StrReplaceAll(text, {{kSpaceMark, " "}});
    text = normalised;
  }
  bool prefix = space_prefix_ == TokenizerSpec::SpacePrefix::kEachSegment ||
                (space_prefix_ == TokenizerSpec::SpacePrefix::kFirstSegment && is_first);
  if (prefix && (prefix_even_before_space_ || text[0] != ' ')) {
    normalised = absl::StrCat(" ", text);
    text = normalised;
  }
  std::vector<TokenId> symbols;
  return splitter_->Split(text, [&](absl::string_view word) { EncodeWord(word, symbols, out); });
}

void Tokenizer::EncodeWord(absl::string_view word, std::vector<TokenId>& symbols, std::vector<TokenId>& out) const {
  if (word.size() == 1 && whole_bytes_[static_cast<uint8_t>(word[0])] >= 0) {
    out.push_back(whole_bytes_[static_cast<uint8_t>(word[0])]);
    return;
  }
  if (auto whole = ids_by_bytes_.find(word); whole != ids_by_bytes_.end() && is_whole_word_[whole->second]) {
    out.push_back(whole->second);
    return;
  }
  symbols.clear();
  if (kind_ == TokenizerSpec::Kind::kByteLevelBpe) {
    for (char byte : word) {
      TokenId id = byte_tokens_[static_cast<uint8_t>(byte)];
      if (id < 0) id = unknown_;
      if (id >= 0) symbols.push_back(id);
    }
  } else {
    while (!word.empty()) {
      int length = std::max(1, Utf8Length(word));
      auto token = ids_by_bytes_.find(word.substr(0, length));
      if (token != ids_by_bytes_.end()) {
        symbols.push_back(token->second);
      } else {
        for (int i = 0; i < length; ++i) {
          TokenId id = byte_tokens_[static_cast<uint8_t>(word[i])];
          symbols.push_back(id >= 0 ? id : std::max(unknown_, 0));
        }
      }
      word.remove_prefix(length);
    }
  }
  MergeSymbols(symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

const Tokenizer::Merge* Tokenizer::FindMerge(TokenId left, TokenId right) const {
  auto entry = merges_.find(PairKey(left, right));
  return entry == merges_.end() ? nullptr : &entry->second;
}

void Tokenizer::MergeSymbols(std::vector<TokenId>& symbols) const {
  if (symbols.size() <= kLongWord) {
    // Few symbols: looking at all pairs each time beats any clever structure.
    while (symbols.size() > 1) {
      const Merge* best = nullptr;
      size_t best_at = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
        if (merge != nullptr && (best == nullptr || merge->rank < best->rank)) {
          best = merge;
          best_at = i;
        }
      }
      if (best == nullptr) return;
      symbols[best_at] = best->result;
      symbols.erase(symbols.begin() + best_at + 1);
    }
    return;
  }
  // Many: a linked list and a queue of candidate merges, leftmost of the best rank first.
  struct Candidate {
    int32_t rank;
    int at;
    TokenId left, right;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  int count = static_cast<int>(symbols.size());
  std::vector<int> previous(count), next(count);
  std::priority_queue<Candidate> queue;
  auto push = [&](int at) {
    if (at < 0 || next[at] >= count) return;
    if (const Merge* merge = FindMerge(symbols[at], symbols[next[at]]); merge != nullptr) {
      queue.push({merge->rank, at, symbols[at], symbols[next[at]]});
    }
  };
  for (int i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
  }
  for (int i = 0; i < count; ++i) push(i);
  while (!queue.empty()) {
    Candidate candidate = queue.top();
    queue.pop();
    int at = candidate.at;
    if (symbols[at] != candidate.left || next[at] >= count || symbols[next[at]] != candidate.right) continue;
    symbols[at] = FindMerge(candidate.left, candidate.right)->result;
    symbols[next[at]] = -1;
    next[at] = next[next[at]];
    if (next[at] < count) previous[next[at]] = at;
    push(previous[at]);
    push(at);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

absl::string_view Tokenizer::TokenBytes(TokenId token, bool with_special) const {
  if (token < 0 || token >= bytes_.size() || (is_special_[token] && !with_special)) return "";
  return bytes_[token];
}

std::string Tokenizer::Decode(absl::Span<const TokenId> tokens, bool with_special) const {
  std::string text;
  Detokenizer detokenizer(*this, with_special);
  for (TokenId token : tokens) detokenizer.Append(token, text);
  detokenizer.Finish(text);
  return text;
}

TokenId Tokenizer::FindToken(absl::string_view text) const {
  if (text.empty()) return -1;
  for (const Special& special : specials_[static_cast<uint8_t>(text[0])]) {
    if (special.text == text) return special.id;
  }
  auto entry = ids_by_bytes_.find(text);
  return entry == ids_by_bytes_.end() ? -1 : entry->second;
}

void Detokenizer::Append(TokenId token, std::string& out) {
  absl::string_view bytes = tokenizer_.TokenBytes(token, with_special_);
  if (strip_space_ && !bytes.empty()) {
    strip_space_ = false;
    if (bytes[0] == ' ') bytes.remove_prefix(1);
  }
  pending_.append(bytes.data(), bytes.size());
  Drain(out, /*at_end=*/false);
}

void Detokenizer::Finish(std::string& out) { Drain(out, /*at_end=*/true); }

void Detokenizer::Drain(std::string& out, bool at_end) {
  absl::string_view rest = pending_;
  while (!rest.empty()) {
    int length = Utf8Length(rest);
    if (length < 0 && !at_end) break;
    if (length > 0) {
      out.append(rest.data(), length);
      rest.remove_prefix(length);
    } else {
      AppendUtf8(0xFFFD, out);
      rest.remove_prefix(length < 0 ? rest.size() : 1);
    }
  }
  pending_.erase(0, pending_.size() - rest.size());
}

}  // namespace tandem
