#include "model/tokenizer.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/pre_tokenizers.h"
#include "model/utf8.h"
#include "model/word_splitter.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Tokenizer& SmolLm2() {
  static const Tokenizer* const tokenizer = [] {
    auto checkpoint = Checkpoint::Open(SmolLm2Path());
    return (*checkpoint)->LoadTokenizer()->release();
  }();
  return *tokenizer;
}

TEST(TokenizerTest, RoundTripsAnyText) {
  for (const char* text :
       {"", "Hello, world!", "  two  spaces\n\n\ttab", "naïve café 日本語 🙂", "def f(x):\n    return x**2",
        "a1b22c333", "don't WON'T we'll", "\xC2\xA0non-breaking", "مرحبا بالعالم"}) {
    ASSERT_OK_AND_ASSIGN(auto ids, SmolLm2().Encode(text));
    EXPECT_EQ(SmolLm2().Decode(ids), text);
  }
}

TEST(TokenizerTest, ParsesSpecialTokensAndHidesThemInOutput) {
  ASSERT_OK_AND_ASSIGN(auto ids, SmolLm2().Encode("<|im_start|>user\nhi<|im_end|>"));
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(ids.back(), 2);
  EXPECT_EQ(SmolLm2().Decode(ids), "user\nhi");
  EXPECT_EQ(SmolLm2().Decode(ids, /*with_special=*/true), "<|im_start|>user\nhi<|im_end|>");
  EXPECT_EQ(SmolLm2().FindToken("<|im_end|>"), 2);
}

TEST(TokenizerTest, RefusesTextThatIsNoUtf8) {
  EXPECT_THAT(SmolLm2().Encode("a\xFF\xFE"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("byte 1 of the text is no UTF-8")));
}

TEST(TokenizerTest, LongWordsMergeAsShortOnesDo) {
  // Both algorithms must agree: a long word of repeated syllables against the same merges done by
  // hand.
  std::string word;
  for (int i = 0; i < 500; ++i) word += "banana";
  ASSERT_OK_AND_ASSIGN(auto ids, SmolLm2().Encode(word));
  EXPECT_EQ(SmolLm2().Decode(ids), word);
  EXPECT_LT(ids.size(), 1600);
}

TEST(TokenizerTest, UnknownIdsHaveNoText) {
  EXPECT_EQ(SmolLm2().TokenBytes(-1), "");
  EXPECT_EQ(SmolLm2().TokenBytes(1 << 30), "");
}

TEST(DetokenizerTest, NeverEmitsHalfACharacter) {
  std::mt19937 random(9);
  const std::string text = "日本語 🙂🙃 naïve — “quotes” ☃";
  ASSERT_OK_AND_ASSIGN(auto ids, SmolLm2().Encode(text));
  Detokenizer detokenizer(SmolLm2());
  std::string all;
  for (TokenId id : ids) {
    std::string piece;
    detokenizer.Append(id, piece);
    EXPECT_TRUE(IsValidUtf8(piece));
    all += piece;
  }
  detokenizer.Finish(all);
  EXPECT_EQ(all, text);
  // Any ids at all give valid text.
  Detokenizer wild(SmolLm2());
  std::string noise;
  for (int i = 0; i < 2000; ++i) wild.Append(static_cast<TokenId>(random() % 49152), noise);
  wild.Finish(noise);
  EXPECT_TRUE(IsValidUtf8(noise));
}

TEST(DetokenizerTest, ReplacesACharacterThatStaysIncomplete) {
  ASSERT_OK_AND_ASSIGN(auto ids, SmolLm2().Encode("🙂"));
  ASSERT_GT(ids.size(), 1);
  Detokenizer detokenizer(SmolLm2());
  std::string text;
  detokenizer.Append(ids[0], text);
  EXPECT_EQ(text, "");
  detokenizer.Finish(text);
  EXPECT_EQ(text, "\xEF\xBF\xBD");
}

TEST(Utf8Test, KnowsWholeCutAndWrongCharacters) {
  EXPECT_EQ(Utf8Length("a"), 1);
  EXPECT_EQ(Utf8Length("é"), 2);
  EXPECT_EQ(Utf8Length("🙂"), 4);
  EXPECT_EQ(Utf8Length("\xF0\x9F"), -1);
  EXPECT_EQ(Utf8Length("\x80"), 0);
  EXPECT_EQ(Utf8Length("\xC0\x80"), 0);          // Overlong.
  EXPECT_EQ(Utf8Length("\xED\xA0\x80"), 0);      // A surrogate.
  EXPECT_EQ(Utf8Length("\xF4\x90\x80\x80"), 0);  // Over U+10FFFF.
}

TokenizerSpec TinySentencePiece() {
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::kSentencePiece;
  spec.space_prefix = TokenizerSpec::SpacePrefix::kEachSegment;
  spec.tokens = {{"<unk>", TokenizerSpec::TokenType::kUnknown, 0}, {"<s>", TokenizerSpec::TokenType::kControl, 0}};
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    snprintf(text, sizeof(text), "<0x%02X>", byte);
    spec.tokens.push_back({text, TokenizerSpec::TokenType::kByte, 0});
  }
  float score = 0;
  for (const char* piece : {"\xE2\x96\x81", "h", "i", "hi", "\xE2\x96\x81hi", "\xE2\x96\x81h"}) {
    spec.tokens.push_back({piece, TokenizerSpec::TokenType::kNormal, score});
    score -= 1;
  }
  spec.unknown = 0;
  return spec;
}

TEST(SentencePieceTest, MergesByScoreAndFallsBackToBytes) {
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(TinySentencePiece()));
  const TokenId hi = tokenizer->FindToken(" hi");
  EXPECT_THAT(tokenizer->Encode("hi"), IsOkAndHolds(ElementsAre(hi)));
  ASSERT_OK_AND_ASSIGN(auto ids, tokenizer->Encode("hi é"));
  EXPECT_THAT(ids, ElementsAre(hi, tokenizer->FindToken(" "), 2 + 0xC3, 2 + 0xA9));
  EXPECT_EQ(tokenizer->Decode(ids), "hi é");
}

constexpr char kTinyJson[] = R"({
  "added_tokens": [{"id": 6, "content": "<end>", "special": true}],
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
     {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "1": 3, "Ġ": 4, "Ġa": 5},
            "merges": ["a b", ["Ġ", "a"]]}})";

TEST(TokenizerJsonTest, ReadsBothMergeFormsAndAddedTokens) {
  ASSERT_OK_AND_ASSIGN(auto spec, TokenizerSpec::FromJson(kTinyJson));
  ASSERT_OK_AND_ASSIGN(auto tokenizer, Tokenizer::Create(std::move(spec)));
  EXPECT_THAT(tokenizer->Encode("ab a11<end>"), IsOkAndHolds(ElementsAre(2, 5, 3, 3, 6)));
}

struct BadTokenizer {
  const char* name;
  const char* text;
  const char* message;
};

class TokenizerJsonRefuses : public testing::TestWithParam<BadTokenizer> {};

TEST_P(TokenizerJsonRefuses, AndNamesThePlace) {
  absl::Status status = TokenizerSpec::FromJson(GetParam().text).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Files, TokenizerJsonRefuses,
    testing::Values(BadTokenizer{"NotJson", "{]", "tokenizer.json: not JSON at byte"},
                    BadTokenizer{"NoModel", "{}", "model: expected an object"},
                    BadTokenizer{"OtherModel", R"({"model":{"type":"Unigram"}})", "model type Unigram"},
                    BadTokenizer{"NoVocab", R"({"model":{"type":"BPE","merges":[]}})", "vocab: expected an object"},
                    BadTokenizer{"VocabWithoutNumbers", R"({"model":{"vocab":{"a":"b"},"merges":[]}})",
                                 "\"a\" has no whole number"},
                    BadTokenizer{"HugeId", R"({"model":{"vocab":{"a":999999999999},"merges":[]}})", "out of range"},
                    BadTokenizer{"NegativeId", R"({"model":{"vocab":{"a":-1},"merges":[]}})", "out of range"},
                    BadTokenizer{"BadMerge", R"({"model":{"vocab":{"a":0},"merges":["ab"]}})", "is no pair"},
                    BadTokenizer{"UnknownPreTokenizer",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Magic"}})",
                                 "pre_tokenizer type Magic"},
                    BadTokenizer{"InvertedSplit",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Split",
                                     "behavior":"Isolated","invert":true,"pattern":{"Regex":"a"}}})",
                                 "Split behavior Isolated, inverted"},
                    BadTokenizer{"OtherMetaspace",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Metaspace",
                                     "replacement":"_"}})",
                                 "replacement: expected U+2581"},
                    BadTokenizer{"OtherReplace",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"normalizer":{"type":"Replace",
                                     "pattern":{"String":"a"},"content":"b"}})",
                                 "normalizer Replace of anything but a space"},
                    BadTokenizer{"SingleWord",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"added_tokens":[{"id":1,"content":"<w>",
                                     "single_word":true}]})",
                                 "\"<w>\" with single_word"},
                    BadTokenizer{"UnknownNormalizer",
                                 R"({"model":{"vocab":{"a":0},"merges":[]},"normalizer":{"type":"Lowercase"}})",
                                 "normalizer type Lowercase"}),
    [](const auto& info) { return std::string(info.param.name); });

// The same pattern in a group is not known as a published one, and goes through the regular expression alone.
TEST(WordSplitterTest, PlainWordsAndDigitsAreCutAsTheirPatternsCutThem) {
  const std::vector<std::string> pieces = {"a",  "Zebra", " ",      "  ", "'s", "'LL", "\n", "\r\n",
                                           "1",  "12345", "٣",      ".",  ", ", "_",   "é",  "e\u0301",
                                           "中", "の",    "\u00a0", "\t", "-",  "😀",   "ß"};
  std::mt19937 random(1);
  for (const absl::string_view pattern : {kGpt2Words, kLlama3Words, kQwen2Words, kDeepseek3Words, kOneDigit}) {
    ASSERT_OK_AND_ASSIGN(const auto shortened, WordSplitter::Create({std::string(pattern)}));
    ASSERT_OK_AND_ASSIGN(const auto plain, WordSplitter::Create({absl::StrCat("(?:", pattern, ")")}));
    for (int i = 0; i < 3000; ++i) {
      std::string text;
      for (int left = random() % 12; left >= 0; --left) text += pieces[random() % pieces.size()];
      const auto words_of = [&](const WordSplitter& splitter) {
        std::vector<std::string> words;
        EXPECT_THAT(splitter.Split(text, [&](absl::string_view word) { words.emplace_back(word); }), IsOk());
        return words;
      };
      ASSERT_EQ(words_of(*shortened), words_of(*plain)) << pattern << " on " << text;
    }
  }
}

TEST(TokenizerJsonTest, RefusesABadPattern) {
  TokenizerSpec spec;
  spec.tokens = {{"a"}};
  spec.pre_tokenizers = {"("};
  EXPECT_THAT(Tokenizer::Create(std::move(spec)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("pre-tokenizer pattern")));
}

}  // namespace
}  // namespace tandem
