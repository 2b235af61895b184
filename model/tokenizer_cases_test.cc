// Each kind of tokenizer against what the `tokenizers` and `sentencepiece` libraries make of the same texts;
// tests/golden/tokenizers/make_cases.py wrote the cases.

#include <boost/json.hpp>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

namespace json = boost::json;

std::string ReadCasesFile(const std::string& name) {
  std::ifstream file(absl::StrCat(TANDEM_SOURCE_DIR, "/tests/golden/tokenizers/", name));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

const json::object& AllCases() {
  static const json::value* const cases = new json::value(json::parse(ReadCasesFile("cases.json")));
  return cases->as_object();
}

void ExpectCases(const Tokenizer& tokenizer, absl::string_view name) {
  const json::array& cases = AllCases().at({name.data(), name.size()}).as_array();
  ASSERT_GT(cases.size(), 20);
  for (const json::value& one : cases) {
    std::string text(one.at("text").as_string().c_str(), one.at("text").as_string().size());
    std::vector<TokenId> expected;
    for (const json::value& id : one.at("ids").as_array()) expected.push_back(static_cast<TokenId>(id.as_int64()));
    EXPECT_THAT(tokenizer.Encode(text), IsOkAndHolds(expected)) << "text: " << absl::CEscape(text);
  }
}

class TokenizerJsonCases : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerJsonCases, GiveTheIdsOfTheTokenizersLibrary) {
  ASSERT_OK_AND_ASSIGN(auto spec, TokenizerSpec::FromJson(ReadCasesFile(absl::StrCat(GetParam(), ".json"))));
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(std::move(spec)));
  ExpectCases(*tokenizer, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerJsonCases,
                         testing::Values("gpt2", "gpt2_prefix_space", "smollm", "digit_runs", "llama3", "qwen2",
                                         "deepseek_v3", "llama2", "metaspace_first", "metaspace_always",
                                         "metaspace_never"),
                         [](const auto& info) { return std::string(info.param); });

// The same vocabulary as a GGUF file, whose pre-tokeniser is only a name.
struct GgufCase {
  const char* cases;
  const char* pre;
};
class TokenizerGgufCases : public testing::TestWithParam<GgufCase> {};

TEST_P(TokenizerGgufCases, GiveTheIdsOfTheTokenizersLibrary) {
  ASSERT_OK_AND_ASSIGN(auto from_json, TokenizerSpec::FromJson(ReadCasesFile(absl::StrCat(GetParam().cases, ".json"))));
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
  for (const TokenizerSpec::Token& token : from_json.tokens) {
    tokens.push_back(token.text);
    types.push_back(token.type == TokenizerSpec::TokenType::kControl ? 3 : 1);  // ggml: control, normal.
  }
  // GGUF has no word for stripping tokens; that one stays out.
  ASSERT_EQ(tokens.back(), "<strip>");
  types.back() = 1;
  tokens.back() = "no such text";
  for (const auto& [left, right] : from_json.merges) merges.push_back(absl::StrCat(left, " ", right));
  GgufWriter writer(0, 6);
  writer.AddTextKey("tokenizer.ggml.model", "gpt2").AddTextKey("tokenizer.ggml.pre", GetParam().pre);
  writer.AddTextsKey("tokenizer.ggml.tokens", tokens).AddTextsKey("tokenizer.ggml.merges", merges);
  writer.AddIntsKey("tokenizer.ggml.token_type", types).AddIntKey("tokenizer.ggml.bos_token_id", 0);
  ASSERT_OK_AND_ASSIGN(auto gguf, writer.Parse());
  ASSERT_OK_AND_ASSIGN(auto spec, TokenizerSpec::FromGguf(*gguf));
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(std::move(spec)));
  ASSERT_OK_AND_ASSIGN(auto reference, Tokenizer::Create(std::move(from_json)));
  const json::array& cases = AllCases().at(GetParam().cases).as_array();
  for (const json::value& one : cases) {
    std::string text(one.at("text").as_string().c_str(), one.at("text").as_string().size());
    if (text.find("<strip>") != std::string::npos) continue;
    // The JSON form is checked against the library above.
    ASSERT_OK_AND_ASSIGN(auto expected, reference->Encode(text, /*add_bos=*/false));
    EXPECT_THAT(tokenizer->Encode(text, /*add_bos=*/false), IsOkAndHolds(expected)) << absl::CEscape(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Names, TokenizerGgufCases,
                         testing::Values(GgufCase{"gpt2", "gpt-2"}, GgufCase{"smollm", "smollm"},
                                         GgufCase{"llama3", "llama-bpe"}, GgufCase{"qwen2", "qwen2"},
                                         GgufCase{"deepseek_v3", "deepseek-v3"}),
                         [](const auto& info) { return std::string(info.param.cases); });

TEST(SentencePieceCases, GiveTheIdsOfTheSentencePieceLibrary) {
  json::value pieces = json::parse(ReadCasesFile("sentencepiece.pieces.json"));
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<float> scores;
  for (const json::value& piece : pieces.as_array()) {
    tokens.emplace_back(piece.at(0).as_string().c_str());
    std::string kind = piece.at(1).as_string().c_str();
    types.push_back(kind == "unknown" ? 2 : kind == "control" ? 3 : kind == "byte" ? 6 : 1);
    scores.push_back(piece.at(2).to_number<float>());
  }
  GgufWriter writer(0, 6);
  writer.AddTextKey("tokenizer.ggml.model", "llama").AddTextsKey("tokenizer.ggml.tokens", tokens);
  writer.AddIntsKey("tokenizer.ggml.token_type", types).AddFloatsKey("tokenizer.ggml.scores", scores);
  writer.AddIntKey("tokenizer.ggml.bos_token_id", 1).AddIntKey("tokenizer.ggml.unknown_token_id", 0);
  ASSERT_OK_AND_ASSIGN(auto gguf, writer.Parse());
  ASSERT_OK_AND_ASSIGN(auto spec, TokenizerSpec::FromGguf(*gguf));
  spec.add_bos = false;  // The library adds none unless asked.
  // The library takes "<s>" in a text for text, as it has to: a GGUF reader takes it for the token.
  for (TokenizerSpec::Token& token : spec.tokens) {
    if (token.type == TokenizerSpec::TokenType::kControl) token.text = "no such text";
  }
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(std::move(spec)));
  ExpectCases(*tokenizer, "sentencepiece");
}

}  // namespace
}  // namespace tandem
