#include "model/tokenizer_spec.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/gguf.h"
#include "model/json_reader.h"
#include "model/pre_tokenizers.h"

namespace tandem {
namespace {

namespace json = boost::json;

// Patterns by GGUF's tokenizer.ggml.pre.
absl::StatusOr<std::vector<std::string>> NamedPreTokenizers(absl::string_view name) {
  std::vector<std::string> patterns;
  if (name == "default" || name == "gpt-2") {
    patterns = {std::string(kGpt2Words)};
  } else if (name == "smollm" || name == "starcoder" || name == "refact" || name == "command-r") {
    patterns = {std::string(kOneDigit), std::string(kGpt2Words)};
  } else if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") {
    patterns = {std::string(kLlama3Words)};
  } else if (name == "qwen2" || name == "deepseek-r1-qwen") {
    patterns = {std::string(kQwen2Words)};
  } else if (name == "deepseek-v3") {
    patterns = {std::string(kThreeDigits), std::string(kHanAndKana), std::string(kDeepseek3Words)};
  } else {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.pre \"", name, "\" is unknown"));
  }
  return patterns;
}

absl::StatusOr<std::pair<std::string, std::string>> SplitMerge(absl::string_view merge) {
  size_t space = merge.find(' ', 1);  // A merge may begin with a space-like token, never with " ".
  if (space == absl::string_view::npos || space + 1 >= merge.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer merge \"", merge, "\" is no pair"));
  }
  return std::pair(std::string(merge.substr(0, space)), std::string(merge.substr(space + 1)));
}

std::string Text(const json::string& text) { return std::string(text.data(), text.size()); }

absl::Status AddToken(TokenizerSpec& spec, int64_t id, TokenizerSpec::Token token) {
  constexpr int64_t kMaxTokens = 1 << 24;
  if (id < 0 || id >= kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: token id ", id, " is out of range"));
  }
  if (spec.tokens.size() <= id) spec.tokens.resize(id + 1);
  spec.tokens[id] = std::move(token);
  return absl::OkStatus();
}

// The pattern of a Split or Replace is {"Regex": "..."} or {"String": "..."}.
absl::StatusOr<std::string> ReadPattern(const JsonReader& split) {
  const json::value* pattern = split.Find("pattern");
  if (pattern == nullptr || !pattern->is_object()) return split.Error("pattern", "expected an object");
  JsonReader reader(pattern->as_object(), "tokenizer.json: pattern.");
  if (reader.Find("Regex") != nullptr) return reader.String("Regex");
  ASSIGN_OR_RETURN(std::string text, reader.String("String"));
  return absl::StrCat("\\Q", text, "\\E");
}

absl::Status ReadMetaspace(const JsonReader& reader, TokenizerSpec& spec) {
  spec.kind = TokenizerSpec::Kind::kSentencePiece;
  ASSIGN_OR_RETURN(std::string replacement, reader.String("replacement"));
  if (replacement != kSpaceMark) return reader.Error("replacement", "expected U+2581");
  ASSIGN_OR_RETURN(std::string scheme, reader.String("prepend_scheme", "always"));
  if (scheme == "always") {
    spec.space_prefix = TokenizerSpec::SpacePrefix::kEachSegment;
  } else if (scheme == "first") {
    spec.space_prefix = TokenizerSpec::SpacePrefix::kFirstSegment;
  } else if (scheme != "never") {
    return reader.Error("prepend_scheme", "expected always, first or never");
  }
  ASSIGN_OR_RETURN(bool split, reader.Bool("split", true));
  if (split) spec.pre_tokenizers.emplace_back(" [^ ]*");  // Each space begins a word.
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const json::object& object, TokenizerSpec& spec) {
  JsonReader reader(object, "tokenizer.json: pre_tokenizer.");
  ASSIGN_OR_RETURN(std::string type, reader.String("type"));
  if (type == "Sequence") {
    const json::value* parts = reader.Find("pretokenizers");
    if (parts == nullptr || !parts->is_array()) return reader.Error("pretokenizers", "expected a list");
    for (const json::value& part : parts->as_array()) {
      if (!part.is_object()) return reader.Error("pretokenizers", "expected objects");
      RETURN_IF_ERROR(ReadPreTokenizer(part.as_object(), spec));
    }
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    spec.kind = TokenizerSpec::Kind::kByteLevelBpe;
    ASSIGN_OR_RETURN(bool use_regex, reader.Bool("use_regex", true));
    ASSIGN_OR_RETURN(bool prefix, reader.Bool("add_prefix_space", true));
    if (prefix && !spec.pre_tokenizers.empty()) {
      return absl::UnimplementedError("tokenizer.json: ByteLevel with add_prefix_space after another pre_tokenizer");
    }
    if (prefix) spec.space_prefix = TokenizerSpec::SpacePrefix::kEachSegment;
    if (use_regex) spec.pre_tokenizers.emplace_back(kGpt2Words);
    return absl::OkStatus();
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(bool individual, reader.Bool("individual_digits", false));
    spec.pre_tokenizers.emplace_back(individual ? "\\p{N}" : "\\p{N}+");
    return absl::OkStatus();
  }
  if (type == "Split") {
    ASSIGN_OR_RETURN(std::string behavior, reader.String("behavior"));
    ASSIGN_OR_RETURN(bool invert, reader.Bool("invert", false));
    if (behavior != "Isolated" || invert) {
      return absl::UnimplementedError(
          absl::StrCat("tokenizer.json: Split behavior ", behavior, invert ? ", inverted" : ""));
    }
    ASSIGN_OR_RETURN(std::string pattern, ReadPattern(reader));
    spec.pre_tokenizers.push_back(std::move(pattern));
    return absl::OkStatus();
  }
  if (type == "Metaspace") return ReadMetaspace(reader, spec);
  return absl::UnimplementedError(absl::StrCat("tokenizer.json: pre_tokenizer type ", type));
}

// Prepend and Replace are what SentencePiece's conversion writes; NFC is Qwen's.
absl::Status ReadNormalizer(const json::object& object, TokenizerSpec& spec) {
  JsonReader reader(object, "tokenizer.json: normalizer.");
  ASSIGN_OR_RETURN(std::string type, reader.String("type"));
  if (type == "NFC") {
    spec.normalise_nfc = true;
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string text, reader.String("prepend"));
    if (text != kSpaceMark) return reader.Error("prepend", "expected U+2581");
    spec.space_prefix = TokenizerSpec::SpacePrefix::kEachSegment;
    spec.prefix_even_before_space = true;
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(std::string pattern, ReadPattern(reader));
    ASSIGN_OR_RETURN(std::string content, reader.String("content"));
    if (pattern != "\\Q \\E" || content != kSpaceMark) {
      return absl::UnimplementedError("tokenizer.json: normalizer Replace of anything but a space by U+2581");
    }
    spec.kind = TokenizerSpec::Kind::kSentencePiece;
  } else if (type == "Sequence") {
    const json::value* parts = reader.Find("normalizers");
    if (parts == nullptr || !parts->is_array()) return reader.Error("normalizers", "expected a list");
    for (const json::value& part : parts->as_array()) {
      if (!part.is_object()) return reader.Error("normalizers", "expected objects");
      RETURN_IF_ERROR(ReadNormalizer(part.as_object(), spec));
    }
  } else {
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: normalizer type ", type));
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonReader& root, TokenizerSpec& spec) {
  const json::value* added = root.Find("added_tokens");
  if (added == nullptr) return absl::OkStatus();
  if (!added->is_array()) return root.Error("added_tokens", "expected a list");
  for (const json::value& item : added->as_array()) {
    if (!item.is_object()) return root.Error("added_tokens", "expected objects");
    JsonReader token(item.as_object(), "tokenizer.json: added_tokens.");
    ASSIGN_OR_RETURN(int64_t id, token.Int("id"));
    ASSIGN_OR_RETURN(std::string content, token.String("content"));
    ASSIGN_OR_RETURN(bool special, token.Bool("special", false));
    TokenizerSpec::Token added_token;
    added_token.text = std::move(content);
    added_token.type = special ? TokenizerSpec::TokenType::kControl : TokenizerSpec::TokenType::kUserDefined;
    ASSIGN_OR_RETURN(added_token.strip_left, token.Bool("lstrip", false));
    ASSIGN_OR_RETURN(added_token.strip_right, token.Bool("rstrip", false));
    ASSIGN_OR_RETURN(bool single_word, token.Bool("single_word", false));
    if (single_word) {
      return absl::UnimplementedError(
          absl::StrCat("tokenizer.json: added token \"", added_token.text, "\" with single_word"));
    }
    RETURN_IF_ERROR(AddToken(spec, id, std::move(added_token)));
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const JsonReader& model, TokenizerSpec& spec) {
  const json::value* merges = model.Find("merges");
  if (merges == nullptr || !merges->is_array()) return model.Error("merges", "expected a list");
  for (const json::value& merge : merges->as_array()) {
    if (merge.is_string()) {
      ASSIGN_OR_RETURN(auto pair, SplitMerge(Text(merge.as_string())));
      spec.merges.push_back(std::move(pair));
    } else if (merge.is_array() && merge.as_array().size() == 2 && merge.as_array()[0].is_string() &&
               merge.as_array()[1].is_string()) {
      spec.merges.emplace_back(Text(merge.as_array()[0].as_string()), Text(merge.as_array()[1].as_string()));
    } else {
      return model.Error("merges", "expected pairs");
    }
  }
  return absl::OkStatus();
}

// A post processor whose template puts a special token before the text adds BOS.
void ReadPostProcessor(const json::object& object, TokenizerSpec& spec) {
  const json::value* parts = object.if_contains("processors");
  if (parts != nullptr && parts->is_array()) {
    for (const json::value& part : parts->as_array()) {
      if (part.is_object()) ReadPostProcessor(part.as_object(), spec);
    }
    return;
  }
  const json::value* single = object.if_contains("single");
  if (single == nullptr || !single->is_array() || single->as_array().empty()) return;
  const json::value& first = single->as_array()[0];
  const json::value* special = first.is_object() ? first.as_object().if_contains("SpecialToken") : nullptr;
  const json::value* id = special != nullptr && special->is_object() ? special->as_object().if_contains("id") : nullptr;
  if (id == nullptr || !id->is_string()) return;
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.tokens[i].text == Text(id->as_string())) {
      spec.add_bos = true;
      spec.bos = static_cast<int32_t>(i);
    }
  }
}

bool IsByteTokenText(absl::string_view text) {
  return text.size() == 6 && absl::StartsWith(text, "<0x") && text[5] == '>';
}

}  // namespace

absl::StatusOr<TokenizerSpec> TokenizerSpec::FromGguf(const GgufFile& gguf) {
  TokenizerSpec spec;
  ASSIGN_OR_RETURN(std::string model, gguf.GetString("tokenizer.ggml.model"));
  if (model != "gpt2" && model != "llama") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.model \"", model, "\"; read are gpt2 and llama"));
  }
  spec.kind = model == "gpt2" ? Kind::kByteLevelBpe : Kind::kSentencePiece;
  ASSIGN_OR_RETURN(auto tokens, gguf.GetStrings("tokenizer.ggml.tokens"));
  auto types = gguf.GetInts("tokenizer.ggml.token_type");
  auto scores = gguf.GetFloats("tokenizer.ggml.scores");
  if ((types.ok() && types->size() != tokens.size()) || (scores.ok() && scores->size() != tokens.size())) {
    return absl::InvalidArgumentError("tokenizer.ggml.token_type or .scores is not as long as .tokens");
  }
  spec.tokens.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    Token& token = spec.tokens[i];
    token.text = std::string(tokens[i]);
    if (scores.ok()) token.score = static_cast<float>((*scores)[i]);
    switch (types.ok() ? (*types)[i] : 1) {  // ggml's llama_token_type.
      case 2:
        token.type = TokenType::kUnknown;
        break;
      case 3:
        token.type = TokenType::kControl;
        break;
      case 4:
        token.type = TokenType::kUserDefined;
        break;
      case 6:
        token.type = TokenType::kByte;
        break;
      default:
        break;
    }
  }
  if (spec.kind == Kind::kByteLevelBpe) {
    ASSIGN_OR_RETURN(auto merges, gguf.GetStrings("tokenizer.ggml.merges"));
    for (absl::string_view merge : merges) {
      ASSIGN_OR_RETURN(auto pair, SplitMerge(merge));
      spec.merges.push_back(std::move(pair));
    }
    std::string pre = gguf.GetString("tokenizer.ggml.pre").value_or("default");
    ASSIGN_OR_RETURN(spec.pre_tokenizers, NamedPreTokenizers(pre));
    spec.ignore_merges = absl::StartsWith(pre, "llama");
    spec.normalise_nfc = pre == "qwen2";
  } else if (!scores.ok()) {
    return scores.status();
  }
  bool sentence_piece = spec.kind == Kind::kSentencePiece;
  if (gguf.GetBool("tokenizer.ggml.add_space_prefix", sentence_piece)) {
    spec.space_prefix = SpacePrefix::kEachSegment;
    spec.prefix_even_before_space = sentence_piece;
  }
  spec.add_bos = gguf.GetBool("tokenizer.ggml.add_bos_token", sentence_piece || spec.ignore_merges);
  spec.bos = static_cast<int32_t>(gguf.GetInt("tokenizer.ggml.bos_token_id").value_or(-1));
  spec.unknown = static_cast<int32_t>(gguf.GetInt("tokenizer.ggml.unknown_token_id").value_or(-1));
  if (spec.add_bos && (spec.bos < 0 || spec.bos >= spec.tokens.size())) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.bos_token_id ", spec.bos, " is no token"));
  }
  return spec;
}

absl::StatusOr<TokenizerSpec> TokenizerSpec::FromJson(absl::string_view text) {
  TokenizerSpec spec;
  ASSIGN_OR_RETURN(json::object object, ParseJsonObject(text, "tokenizer.json"));
  JsonReader root(object, "tokenizer.json: ");
  const json::value* model_value = root.Find("model");
  if (model_value == nullptr || !model_value->is_object()) return root.Error("model", "expected an object");
  JsonReader model(model_value->as_object(), "tokenizer.json: model.");
  ASSIGN_OR_RETURN(std::string type, model.String("type", "BPE"));
  if (type != "BPE")
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: model type ", type, "; read is BPE"));
  ASSIGN_OR_RETURN(bool byte_fallback, model.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(spec.ignore_merges, model.Bool("ignore_merges", false));
  spec.kind = byte_fallback ? Kind::kSentencePiece : Kind::kByteLevelBpe;
  const json::value* vocab = model.Find("vocab");
  if (vocab == nullptr || !vocab->is_object()) return model.Error("vocab", "expected an object");
  for (const auto& entry : vocab->as_object()) {
    std::string token(entry.key().data(), entry.key().size());
    if (!entry.value().is_int64()) return model.Error("vocab", absl::StrCat("\"", token, "\" has no whole number"));
    TokenType token_type = byte_fallback && IsByteTokenText(token) ? TokenType::kByte : TokenType::kNormal;
    RETURN_IF_ERROR(AddToken(spec, entry.value().as_int64(), {std::move(token), token_type}));
  }
  RETURN_IF_ERROR(ReadMerges(model, spec));
  RETURN_IF_ERROR(ReadAddedTokens(root, spec));
  if (const json::value* normalizer = root.Find("normalizer"); normalizer != nullptr) {
    if (!normalizer->is_object()) return root.Error("normalizer", "expected an object");
    RETURN_IF_ERROR(ReadNormalizer(normalizer->as_object(), spec));
  }
  if (const json::value* pre = root.Find("pre_tokenizer"); pre != nullptr) {
    if (!pre->is_object()) return root.Error("pre_tokenizer", "expected an object");
    RETURN_IF_ERROR(ReadPreTokenizer(pre->as_object(), spec));
  }
  if (const json::value* post = root.Find("post_processor"); post != nullptr && post->is_object()) {
    ReadPostProcessor(post->as_object(), spec);
  }
  ASSIGN_OR_RETURN(std::string unknown, model.String("unk_token", ""));
  for (size_t i = 0; i < spec.tokens.size() && !unknown.empty(); ++i) {
    if (spec.tokens[i].text == unknown) spec.unknown = static_cast<int32_t>(i);
  }
  return spec;
}

}  // namespace tandem
