#include "engine/constraint/format_thread.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
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

  std::shared_ptr<FormatJob> Start(OutputFormat::Kind kind, std::string text, std::vector<TokenId> output = {}) {
    return thread_.Start(std::make_shared<OutputFormat>(OutputFormat{kind, std::move(text)}), std::move(output));
  }
  static FormatJob::Result Await(FormatJob& job) {
    while (true) {
      if (std::optional<FormatJob::Result> result = job.TakeResult(); result.has_value()) return *std::move(result);
      std::this_thread::yield();
    }
  }
  // What became of one.
  absl::Status StatusOf(OutputFormat::Kind kind, std::string text) {
    return Await(*Start(kind, std::move(text))).status();
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
  const auto whole = Start(Kind::kJsonSchema, kObject), rest = Start(Kind::kJsonSchema, kObject, begun);
  const auto left = Start(Kind::kJsonSchema, kObject, wrong), none = Start(Kind::kRegex, "(");
  const TokenId close = *tokenizer->Encode("}", false)->data();
  const auto allows_end = [&](FormatJob& job) -> absl::StatusOr<bool> {
    ASSIGN_OR_RETURN(const std::unique_ptr<TokenConstraint> constraint, Await(job));
    ASSIGN_OR_RETURN(const absl::Span<const uint32_t> mask, constraint->Allowed());
    return (mask[close / 32] >> (close % 32) & 1) != 0;
  };
  EXPECT_THAT(allows_end(*whole), IsOkAndHolds(false));
  EXPECT_THAT(allows_end(*rest), IsOkAndHolds(true));
  EXPECT_THAT(Await(*left), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("response_format: cannot be")));
  EXPECT_THAT(Await(*none), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unclosed group")));
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

// In a process of its own, whose address space ends where a stack would begin.
TEST(FormatThreadDeathTest, WithoutAThreadEveryFormatFails) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need address space of their own";
#endif
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  const auto run = [&] {
    rlimit space;
    getrlimit(RLIMIT_AS, &space);
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    space.rlim_cur = pages * sysconf(_SC_PAGESIZE) + (32 << 20);
    setrlimit(RLIMIT_AS, &space);
    FormatThread thread(*checkpoint);
    const auto job = thread.Start(std::make_shared<OutputFormat>(OutputFormat{Kind::kJsonSchema, kObject}), {});
    std::cerr << (*job->TakeResult()).status();
    std::exit(0);
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(0), "FAILED_PRECONDITION: response_format: needs a thread with a stack");
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
