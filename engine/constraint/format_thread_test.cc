#include "engine/constraint/format_thread.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

class FormatThreadTest : public testing::Test {
 protected:
  FormatThreadTest() : FormatThreadTest("llama3_f32") {}
  explicit FormatThreadTest(const std::string& model)
      : checkpoint_(*Checkpoint::Open(SourcePath("tests/golden/tiny/" + model))), thread_(*checkpoint_) {}

  void Start(uint64_t id, OutputFormat::Kind kind, std::string text, std::vector<TokenId> output = {}) {
    thread_.Start(id, std::make_shared<OutputFormat>(OutputFormat{kind, std::move(text)}), std::move(output));
  }
  // Waits for so many results.
  std::map<uint64_t, FormatThread::Result> Await(size_t count) {
    std::map<uint64_t, FormatThread::Result> results;
    while (results.size() < count) {
      for (auto& [id, result] : thread_.TakeDone()) results.emplace(id, std::move(result));
      std::this_thread::yield();
    }
    return results;
  }
  // What became of one.
  absl::Status StatusOf(OutputFormat::Kind kind, std::string text) {
    Start(1, kind, std::move(text));
    return Await(1).at(1).status();
  }
  const std::unique_ptr<Checkpoint> checkpoint_;
  FormatThread thread_;
};

constexpr char kObject[] = R"({"type": "object"})";
using Kind = OutputFormat::Kind;

TEST_F(FormatThreadTest, CompilesEachAndGoesThroughItsOutput) {
  ASSERT_OK_AND_ASSIGN(auto tokenizer, checkpoint_->LoadTokenizer());
  ASSERT_OK_AND_ASSIGN(const std::vector<TokenId> begun, tokenizer->Encode(R"({"a": 1)", false));
  ASSERT_OK_AND_ASSIGN(const std::vector<TokenId> wrong, tokenizer->Encode("[", false));
  Start(7, Kind::kJsonSchema, kObject);
  Start(8, Kind::kJsonSchema, kObject, begun);
  Start(9, Kind::kJsonSchema, kObject, wrong);
  Start(10, Kind::kRegex, "(");
  auto results = Await(4);
  const TokenId close = *tokenizer->Encode("}", false)->data();
  const auto allows_end = [&](uint64_t id) {
    auto mask = (*results.at(id))->Allowed();
    EXPECT_THAT(mask, IsOk());
    return ((*mask)[close / 32] >> (close % 32) & 1) != 0;
  };
  EXPECT_FALSE(allows_end(7));
  EXPECT_TRUE(allows_end(8));
  EXPECT_THAT(results.at(9), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("response_format: cannot be")));
  EXPECT_THAT(results.at(10), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unclosed group")));
}

// Each would take more stack than threads usually have.
TEST_F(FormatThreadTest, FormatsOfAnyDepthEndNoProcess) {
  std::string rules = "start: r0", terminals = "start: R0",
              templates = "start: ", refs = R"({"$ref":"#/$defs/0","$defs":{)";
  for (int i = 0; i < 6000; ++i) absl::StrAppend(&rules, "\nr", i, ":r", i + 1);
  for (int i = 0; i < 6000; ++i) absl::StrAppend(&terminals, "\nR", i, ":R", i + 1);
  for (int i = 0; i < 32'000; ++i) templates += "a{";
  for (int i = 0; i < 2000; ++i) absl::StrAppend(&refs, "\"", i, "\":{\"$ref\":\"#/$defs/", i + 1, "\"},");
  EXPECT_THAT(StatusOf(Kind::kLark, rules + "\nr6000:\"a\""), IsOk());
  EXPECT_THAT(StatusOf(Kind::kLark, terminals + "\nR6000:\"a\""), IsOk());
  EXPECT_THAT(StatusOf(Kind::kLark, templates), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(StatusOf(Kind::kJsonSchema, refs + R"("2000":{"type":"object"}}})"), IsOk());
  EXPECT_THAT(StatusOf(Kind::kRegex, std::string(20'000, '(') + std::string(20'000, ')')),
              StatusIs(absl::StatusCode::kInvalidArgument));
  std::string deep;
  for (int i = 0; i < 5000; ++i) deep += R"({"items":)";
  EXPECT_THAT(StatusOf(Kind::kJsonSchema, deep), StatusIs(absl::StatusCode::kInvalidArgument));
}

class FormatThreadWithoutTokenizerTest : public FormatThreadTest {
 protected:
  FormatThreadWithoutTokenizerTest() : FormatThreadTest("qwen3_bf16") {}
};

TEST_F(FormatThreadWithoutTokenizerTest, SaysWhatIsMissing) {
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(
        StatusOf(Kind::kJsonSchema, kObject),
        StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("response_format: needs the model's tokenizer")));
  }
}

}  // namespace
}  // namespace tandem
