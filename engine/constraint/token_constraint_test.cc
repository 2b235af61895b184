#include "engine/constraint/token_constraint.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr TokenId kEnd = 0, kEndOfTurn = 1, kLongToken = 2 + 256;

// Each byte a token, two that end the sequence, and one of several bytes.
std::unique_ptr<ConstraintCompiler> ByteCompiler() {
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::kSentencePiece;
  spec.space_prefix = TokenizerSpec::SpacePrefix::kEachSegment;  // Of prompts; not of answers.
  spec.tokens.push_back({"<end>", TokenizerSpec::TokenType::kControl});
  spec.tokens.push_back({"<turn>", TokenizerSpec::TokenType::kControl});
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    spec.tokens.push_back({name, TokenizerSpec::TokenType::kByte});
  }
  spec.tokens.push_back({"{\"a\":", TokenizerSpec::TokenType::kNormal});
  auto tokenizer = Tokenizer::Create(std::move(spec));
  EXPECT_THAT(tokenizer, IsOk());
  ModelConfig config;
  config.vocab_size = 300;  // Over the tokenizer's, as models have it.
  config.eos_tokens = {kEnd, kEndOfTurn};
  auto compiler = ConstraintCompiler::Create(**tokenizer, config);
  EXPECT_THAT(compiler, IsOk());
  return *std::move(compiler);
}

bool Has(absl::Span<const uint32_t> mask, TokenId token) { return mask[token / 32] >> (token % 32) & 1; }
TokenId ByteToken(char byte) { return 2 + static_cast<uint8_t>(byte); }

// How far `text` goes along the format: "all" when the sequence must end then, "open" when it may or may not end,
// "more" when it must go on; else what came before the first byte that was not allowed.
std::string Follow(const OutputFormat& format, const std::string& text) {
  static const std::unique_ptr<ConstraintCompiler> compiler = ByteCompiler();
  auto constraint = compiler->Compile(format);
  if (!constraint.ok()) return std::string(constraint.status().message());
  for (size_t i = 0; i < text.size(); ++i) {
    auto mask = (*constraint)->Allowed();
    if (!mask.ok()) return std::string(mask.status().message());
    if (!Has(*mask, ByteToken(text[i]))) return text.substr(0, i);
    EXPECT_THAT((*constraint)->Accept({ByteToken(text[i])}), IsOk());
  }
  auto mask = (*constraint)->Allowed();
  if (!mask.ok()) return std::string(mask.status().message());
  EXPECT_EQ(Has(*mask, kEnd), Has(*mask, kEndOfTurn));
  if (!Has(*mask, kEnd)) return "more";
  int others = 0;
  for (TokenId token = kEndOfTurn + 1; token < 300; ++token) others += Has(*mask, token);
  return others == 0 ? "all" : "open";
}

OutputFormat Schema(std::string text) { return {OutputFormat::Kind::kJsonSchema, std::move(text)}; }

TEST(TokenConstraintTest, JsonFollowsItsSchema) {
  const OutputFormat schema = Schema(R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","y"]}},
                                          "required":["a"],"additionalProperties":false})");
  EXPECT_EQ(Follow(schema, R"({"a":1})"), "all");
  EXPECT_EQ(Follow(schema, "{\n    \"a\": 1,\n    \"b\": \"y\"\n}"), "all");
  EXPECT_EQ(Follow(schema, R"({"a":1)"), "more");
  EXPECT_EQ(Follow(schema, R"({"a":"1"})"), R"({"a":)");
  EXPECT_EQ(Follow(schema, R"({"b":"x"})"), R"({")");
  EXPECT_EQ(Follow(schema, R"({"a":1,"b":"z"})"), R"({"a":1,"b":")");
  EXPECT_EQ(Follow(schema, "Here it is: "), "");
}

TEST(TokenConstraintTest, AnyJsonObjectIsOne) {
  const OutputFormat any = Schema(R"({"type":"object"})");
  EXPECT_EQ(Follow(any, R"({"q":[1,2.5e3,{"z":null}],"":"ü"})"), "all");
  EXPECT_EQ(Follow(any, "[1]"), "");
}

TEST(TokenConstraintTest, SpaceBetweenPartsOfJsonIsBounded) {
  const OutputFormat any = Schema(R"({"type":"object"})");
  EXPECT_EQ(Follow(any, "{" + std::string(32, ' ') + "}"), "all");
  EXPECT_EQ(Follow(any, "{" + std::string(33, ' ')), "{" + std::string(32, ' '));
  EXPECT_EQ(Follow(any, "{\n\n"), "{\n");
}

TEST(TokenConstraintTest, TokensOfSeveralBytesAreAllowedWhereAllOfThemAre) {
  const auto compiler = ByteCompiler();
  ASSERT_OK_AND_ASSIGN(auto fits, compiler->Compile(Schema(R"({"type":"object"})")));
  ASSERT_OK_AND_ASSIGN(auto mask, fits->Allowed());
  EXPECT_TRUE(Has(mask, kLongToken));
  EXPECT_FALSE(Has(mask, 299)) << "no token at all";
  ASSERT_OK_AND_ASSIGN(auto other, compiler->Compile(Schema(R"({"type":"object","properties":{"b":{"type":"null"}},
                                                                "additionalProperties":false})")));
  ASSERT_OK_AND_ASSIGN(mask, other->Allowed());
  EXPECT_FALSE(Has(mask, kLongToken));
  EXPECT_TRUE(Has(mask, ByteToken('{')));
  // What was not allowed is not accepted.
  EXPECT_THAT(other->Accept({kLongToken}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(TokenConstraintTest, GoesOnWhereEarlierOutputEnded) {
  const auto compiler = ByteCompiler();
  ASSERT_OK_AND_ASSIGN(auto constraint, compiler->Compile(Schema(R"({"type":"object"})")));
  ASSERT_THAT(constraint->Accept({kLongToken, ByteToken('1')}), IsOk());
  ASSERT_OK_AND_ASSIGN(auto mask, constraint->Allowed());
  EXPECT_TRUE(Has(mask, ByteToken('}')));
  EXPECT_FALSE(Has(mask, ByteToken('{')));
}

TEST(TokenConstraintTest, RegularExpressionsAreOfTheWholeAnswer) {
  const OutputFormat regex{OutputFormat::Kind::kRegex, R"([0-9]{3}/\w+(\.|\/)x)"};
  EXPECT_EQ(Follow(regex, "123/ab.x"), "all");
  EXPECT_EQ(Follow(regex, "123/ab/x"), "all");
  EXPECT_EQ(Follow(regex, "1234"), "123");
  EXPECT_EQ(Follow({OutputFormat::Kind::kRegex, "a\nb?"}, "a\n"), "open");
  EXPECT_EQ(Follow({OutputFormat::Kind::kRegex, "a\\\nb"}, "a\nb"), "all");
  EXPECT_EQ(Follow({OutputFormat::Kind::kRegex, "a\\/b\\\\"}, "a/b\\"), "all");
  EXPECT_THAT(Follow({OutputFormat::Kind::kRegex, "a\\"}, ""), HasSubstr("response_format: "));
}

TEST(TokenConstraintTest, GrammarsBeginAtStart) {
  const OutputFormat grammar{OutputFormat::Kind::kLark, "start: sum\nsum: NUMBER | sum \"+\" NUMBER\nNUMBER: /[0-9]+/"};
  EXPECT_EQ(Follow(grammar, "1+22"), "open");
  EXPECT_EQ(Follow(grammar, "1+"), "more");
  EXPECT_EQ(Follow(grammar, "1++"), "1+");
}

TEST(TokenConstraintTest, TextThatIsWrittenAsASpecialTokenIsText) {
  const OutputFormat format = Schema(R"({"type":"object","properties":{"x":{"const":"<end>"}},"required":["x"],
                                          "additionalProperties":false})");
  EXPECT_EQ(Follow(format, R"({"x":")"), "more");
  EXPECT_EQ(Follow(format, R"({"x":"<end>"})"), "all");
}

TEST(TokenConstraintTest, ReasoningComesBeforeTheFormat) {
  OutputFormat format = Schema(R"({"type":"object"})");
  EXPECT_EQ(Follow(format, "<think>"), "");
  format.reasoning = OutputFormat::Reasoning::kMayComeFirst;
  EXPECT_EQ(Follow(format, "<think>Is {\"a\": 1} right?\n</think>\n\n{\"a\": 1}"), "all");
  EXPECT_EQ(Follow(format, "{}"), "all");
  EXPECT_EQ(Follow(format, "Hm"), "");
  format.reasoning = OutputFormat::Reasoning::kIsOpen;
  EXPECT_EQ(Follow(format, "Is {} right?</think>{}"), "all");
  EXPECT_EQ(Follow(format, "{}"), "more");
  EXPECT_EQ(Follow(format, "</think>no"), "</think>");
}

TEST(TokenConstraintTest, FormatsThatAreNoneSayWhatIsWrong) {
  const std::string begin = "response_format: ";
  EXPECT_THAT(Follow(Schema("{"), ""), HasSubstr(begin + "the schema is no valid JSON"));
  EXPECT_THAT(Follow(Schema("[]"), ""), HasSubstr(begin + "the schema must be a JSON object"));
  EXPECT_THAT(Follow(Schema(R"({"type":"objekt"})"), ""), HasSubstr("Invalid type: objekt"));
  EXPECT_THAT(Follow(Schema(R"({"not":{"type":"null"}})"), ""), HasSubstr(R"(Unimplemented keys: ["not"])"));
  EXPECT_THAT(Follow({OutputFormat::Kind::kRegex, "("}, ""), HasSubstr("unclosed group"));
  EXPECT_THAT(Follow({OutputFormat::Kind::kLark, "begin: \"a\""}, ""), HasSubstr("start"));
}

TEST(TokenConstraintTest, FormatsThatTakeTooMuchFailAtTheTokenWhereTheyDo) {
  // More rules at once than the parser follows.
  std::string grammar = "start: r0";
  for (int i = 1; i < 3000; ++i) absl::StrAppend(&grammar, " | r", i);
  for (int i = 0; i < 3000; ++i) absl::StrAppend(&grammar, "\nr", i, ": \"a\" r", i, " | \"a\"");
  const auto bytes = ByteCompiler();
  ASSERT_OK_AND_ASSIGN(auto ambiguous, bytes->Compile({OutputFormat::Kind::kLark, grammar}));
  EXPECT_THAT(ambiguous->Accept({ByteToken('a')}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("response_format: cannot be followed: ")));

  // More states of a regular expression than a mask of many tokens may visit.
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(SmolLm2Path()));
  ASSERT_OK_AND_ASSIGN(auto tokenizer, checkpoint->LoadTokenizer());
  ASSERT_OK_AND_ASSIGN(auto compiler, ConstraintCompiler::Create(*tokenizer, checkpoint->config()));
  ASSERT_OK_AND_ASSIGN(auto states,
                       compiler->Compile(Schema(R"({"type":"string","pattern":"^(.{1,500}a){1,500}b.*c.{900}$"})")));
  absl::Status error;
  for (int i = 0; i < 100 && error.ok(); ++i) {
    auto mask = states->Allowed();
    error = mask.status();
    if (!error.ok()) break;
    TokenId last = checkpoint->config().vocab_size - 1;
    while (!Has(*mask, last)) --last;
    ASSERT_THAT(states->Accept({last}), IsOk());
  }
  EXPECT_THAT(error, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("response_format: cannot be followed: ")));
}

TEST(TokenConstraintTest, ModelsWithoutAnEndCannotFollowFormats) {
  TokenizerSpec spec;
  spec.tokens.push_back({"a"});
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(std::move(spec)));
  ModelConfig config;
  config.vocab_size = 1;
  EXPECT_THAT(ConstraintCompiler::Create(*tokenizer, config), StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace tandem
