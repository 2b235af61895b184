#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/load_generator.h"
#include "client/load_plan.h"
#include "client/load_report.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Lt;

LoadOptions With(Arrivals arrivals, int requests) {
  LoadOptions options;
  options.arrivals = arrivals;
  options.requests = requests;
  return options;
}

std::string WriteTrace(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

TEST(LoadPlanTest, PoissonArrivalsHaveTheirRateAndItsSpread) {
  LoadOptions options = With(Arrivals::kPoisson, 20'000);
  options.requests_per_second = 50;
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  ASSERT_EQ(plan.requests.size(), 20'000);
  double sum = 0, squares = 0;
  for (size_t i = 1; i < plan.requests.size(); ++i) {
    const double gap = absl::ToDoubleSeconds(plan.requests[i].due - plan.requests[i - 1].due);
    ASSERT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / 19'999;
  EXPECT_THAT(mean, DoubleNear(0.02, 0.0006));
  EXPECT_THAT(squares / 19'999 / (mean * mean), DoubleNear(2, 0.1));  // Of an exponential distribution.
  ASSERT_OK_AND_ASSIGN(const LoadPlan again, MakeLoadPlan(options));
  EXPECT_EQ(again.requests.back().due, plan.requests.back().due);
}

TEST(LoadPlanTest, ConstantArrivalsAreEvenlySpacedAndLengthsStayInTheirRange) {
  LoadOptions options = With(Arrivals::kConstant, 1'000);
  options.requests_per_second = 4;
  options.prompt = {10, 20};
  options.output = {1, 3};
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  std::vector<int> prompts, outputs;
  for (size_t i = 0; i < plan.requests.size(); ++i) {
    EXPECT_EQ(plan.requests[i].due, absl::Milliseconds(250) * static_cast<int64_t>(i));
    prompts.push_back(plan.requests[i].prompt_tokens);
    outputs.push_back(plan.requests[i].output_tokens);
  }
  EXPECT_THAT(prompts, AllOf(Each(Ge(10)), Each(Lt(21)), testing::Contains(10), testing::Contains(20)));
  EXPECT_THAT(outputs, AllOf(Each(Ge(1)), Each(Lt(4)), testing::Contains(1), testing::Contains(3)));
}

TEST(LoadPlanTest, AnAzureTraceIsReplayedAtItsSpeed) {
  LoadOptions options = With(Arrivals::kTrace, 100);
  options.trace = WriteTrace("azure.csv",
                             "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\r\n"
                             "2023-11-16 18:17:04.4799600,30000,8\n2023-11-16 18:17:05.9799600,110,27\n");
  options.speed = 4;
  options.max_context_tokens = 8'192;
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  ASSERT_EQ(plan.requests.size(), 2);
  EXPECT_EQ(plan.left_out, 1);
  EXPECT_EQ(plan.requests[0].prompt_tokens, 4'808);
  EXPECT_EQ(plan.requests[1].due, absl::Milliseconds(500));
  EXPECT_EQ(plan.requests[1].output_tokens, 27);
}

TEST(LoadPlanTest, EqualBlocksOfAMooncakeTraceAreEqualPrefixes) {
  LoadOptions options = With(Arrivals::kTrace, 100);
  options.trace = WriteTrace("mooncake.jsonl",
                             R"({"timestamp": 100, "input_length": 1100, "output_length": 6, "hash_ids": [7, 8, 9]})"
                             "\n"
                             R"({"timestamp": 350, "input_length": 1200, "output_length": 5, "hash_ids": [7, 8, 4]})"
                             "\n");
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  ASSERT_EQ(plan.requests.size(), 2);
  EXPECT_EQ(plan.requests[1].due, absl::Milliseconds(250));
  const std::vector<TokenId> a = MakePrompt(plan.requests[0], 1'000), b = MakePrompt(plan.requests[1], 1'000);
  ASSERT_EQ(a.size(), 1'100);
  ASSERT_EQ(b.size(), 1'200);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 1'024, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 1'024, a.end(), b.begin() + 1'024));
  EXPECT_FALSE(std::equal(a.begin(), a.begin() + 512, a.begin() + 512));
  EXPECT_THAT(a, AllOf(Each(Ge(0)), Each(Lt(1'000))));
}

TEST(LoadPlanTest, ATraceOfScaledTokensSharesAsMuchOfItsPrompts) {
  LoadOptions options = With(Arrivals::kTrace, 100);
  options.trace =
      WriteTrace("scaled.jsonl", R"({"timestamp": 0, "input_length": 1100, "output_length": 60, "hash_ids": [7, 8, 9]})"
                                 "\n"
                                 R"({"timestamp": 1, "input_length": 1200, "output_length": 1, "hash_ids": [7, 8, 4]})"
                                 "\n");
  options.token_scale = 0.125;
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  EXPECT_EQ(plan.requests[0].output_tokens, 8);
  EXPECT_EQ(plan.requests[1].output_tokens, 1);
  const std::vector<TokenId> a = MakePrompt(plan.requests[0], 1'000), b = MakePrompt(plan.requests[1], 1'000);
  ASSERT_EQ(a.size(), 138);
  ASSERT_EQ(b.size(), 150);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 128, b.begin()));
  EXPECT_NE(a[128], b[128]);
}

TEST(LoadPlanTest, BadInputNamesTheOptionOrTheLine) {
  auto error = [](auto change) {
    LoadOptions options;
    change(options);
    return std::string(MakeLoadPlan(options).status().message());
  };
  EXPECT_THAT(error([](auto& options) { options.requests_per_second = 0; }), HasSubstr("rate must be over 0"));
  EXPECT_THAT(error([](auto& options) { options.prompt = {5, 4}; }), HasSubstr("prompt must be"));
  EXPECT_THAT(error([](auto& options) { options.max_context_tokens = 100; }), HasSubstr("context of 100"));
  for (const char* line : {"1,2", "2023-11-16 18:17:03.97,x,10", "2023-11-16 18:17:03.97,0,10"}) {
    LoadOptions options = With(Arrivals::kTrace, 1);
    options.trace = WriteTrace("bad.csv", absl::StrCat("TIMESTAMP,ContextTokens,GeneratedTokens\n", line, "\n"));
    EXPECT_THAT(MakeLoadPlan(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bad.csv:2: "))) << line;
  }
  for (const char* line : {"[]", "{", R"({"timestamp": "x", "input_length": 1, "output_length": 1})"}) {
    LoadOptions options = With(Arrivals::kTrace, 1);
    options.trace = WriteTrace("bad.jsonl", line);
    EXPECT_THAT(MakeLoadPlan(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bad.jsonl:1: ")))
        << line;
  }
  LoadOptions options = With(Arrivals::kTrace, 1);
  options.trace = "/nonexistent.csv";
  EXPECT_THAT(MakeLoadPlan(options), StatusIs(absl::StatusCode::kNotFound));
}

// Takes a second for each request, one after another.
class SlowTarget final : public LoadTarget {
 public:
  explicit SlowTarget(FakeClock& clock) : clock_(clock) {}
  absl::Status Generate(const std::vector<TokenId>& prompt, int output_tokens,
                        const std::function<void(int tokens)>& on_tokens) override {
    absl::MutexLock lock(&mu_);
    prompts_.push_back(static_cast<int>(prompt.size()));
    if (fails_) return absl::UnavailableError("no worker");
    clock_.Advance(absl::Seconds(1));
    on_tokens(1);
    for (int token = 1; token < output_tokens; ++token) {
      clock_.Advance(absl::Milliseconds(10));
      on_tokens(1);
    }
    return absl::OkStatus();
  }
  FakeClock& clock_;
  absl::Mutex mu_;
  std::vector<int> prompts_;
  bool fails_ = false;
};

TEST(LoadGeneratorTest, WhatWaitsForASlowServerCountsFromWhenItShouldHaveBeenSent) {
  FakeClock clock;
  SlowTarget target(clock);
  LoadOptions options = With(Arrivals::kConstant, 5);
  options.requests_per_second = 10;
  options.output = {3, 3};
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  const absl::Time begin = clock.Now();
  std::vector<RequestRecord> records = RunLoad(
      plan, options, target, clock,
      [&](absl::Time due) {
        if (clock.Now() < due) clock.Advance(due - clock.Now());
      },
      nullptr);
  ASSERT_EQ(records.size(), 5);
  std::vector<double> ttft;
  for (const RequestRecord& record : records) {
    EXPECT_THAT(record.status, IsOk());
    EXPECT_EQ(record.gaps.size(), 2);
    ttft.push_back(absl::ToDoubleSeconds(record.first_token - record.due));
  }
  // Five seconds of work came in within half a second: in whatever order, the last one waited for the others.
  std::sort(ttft.begin(), ttft.end());
  EXPECT_GE(ttft[4], 4.5);
  EXPECT_GE(ttft[2], 2.5);
  EXPECT_GE(absl::ToDoubleSeconds(clock.Now() - begin), 5);
}

TEST(LoadGeneratorTest, AClosedLoopSendsTheNextWhenOneHasEnded) {
  FakeClock clock;
  SlowTarget target(clock);
  LoadOptions options = With(Arrivals::kClosed, 4);
  options.concurrency = 1;
  options.output = {1, 1};
  options.prompt = {7, 7};
  ASSERT_OK_AND_ASSIGN(const LoadPlan plan, MakeLoadPlan(options));
  int calls = 0;
  const std::vector<RequestRecord> records =
      RunLoad(plan, options, target, clock, nullptr, [&](const LoadProgress& progress) {
        ++calls;
        EXPECT_LE(progress.sent - progress.ended, 1);
      });
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].due, absl::Seconds(1) * static_cast<int64_t>(i));
    EXPECT_EQ(records[i].first_token - records[i].due, absl::Seconds(1));
  }
  EXPECT_EQ(calls, 8);
  EXPECT_THAT(target.prompts_, ElementsAre(7, 7, 7, 7));
}

RequestRecord Record(int64_t due_ms, int64_t first_ms, int64_t gap_ms, int tokens) {
  RequestRecord record{.due = absl::Milliseconds(due_ms), .sent = absl::Milliseconds(due_ms + 1)};
  record.first_token = absl::Milliseconds(due_ms + first_ms);
  record.gaps.assign(tokens - 1, absl::Milliseconds(gap_ms));
  record.last_token = record.first_token + absl::Milliseconds(gap_ms) * (tokens - 1);
  record.prompt_tokens = 100;
  record.output_tokens = tokens;
  return record;
}

TEST(LoadReportTest, SummarisesWhatCameAfterTheWarmUp) {
  std::vector<RequestRecord> records = {Record(0, 5'000, 500, 2)};
  for (int i = 0; i < 100; ++i) records.push_back(Record(1'000 + 10 * i, i + 1, 10, 11));
  records.push_back(Record(1'500, 1, 1, 2));
  records.back().status = absl::ResourceExhaustedError("queue full");
  const Slo strict = {absl::Milliseconds(50), absl::Milliseconds(20)}, lax = {absl::Seconds(1), absl::Milliseconds(10)},
            impossible = {absl::Seconds(1), absl::Milliseconds(9)};
  const LoadReport report = SummariseLoad(records, 1, {strict, lax, impossible});
  EXPECT_EQ(report.requests, 101);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.failures.begin()->first, "RESOURCE_EXHAUSTED: queue full");
  EXPECT_THAT(report.ttft.mean, DoubleEq(50.5));
  EXPECT_THAT(report.ttft.p50, DoubleEq(50));
  EXPECT_THAT(report.ttft.p99, DoubleEq(99));
  EXPECT_THAT(report.ttft.p999, DoubleEq(100));
  EXPECT_THAT(report.ttft.max, DoubleEq(100));
  EXPECT_EQ(report.itl.count, 1'000);
  EXPECT_THAT(report.itl.p99, DoubleEq(10));
  EXPECT_THAT(report.tpot.p50, DoubleEq(10));
  EXPECT_THAT(report.e2e.max, DoubleEq(200));
  EXPECT_THAT(report.send_delay.p99, DoubleEq(1));
  EXPECT_THAT(report.seconds, DoubleNear(1.19, 1e-9));  // 990 ms to the last due time, and its 200.
  EXPECT_THAT(report.requests_per_second, DoubleNear(100 / 1.19, 1e-6));
  EXPECT_THAT(report.output_tokens_per_second, DoubleNear(1'100 / 1.19, 1e-6));
  ASSERT_EQ(report.goodput.size(), 3);
  EXPECT_THAT(report.goodput[0].second, DoubleNear(50 / 1.19, 1e-6));
  EXPECT_THAT(report.goodput[1].second, DoubleNear(100 / 1.19, 1e-6));
  EXPECT_EQ(report.goodput[2].second, 0);
  EXPECT_THAT(DescribeLoad(report), AllOf(HasSubstr("1 x RESOURCE_EXHAUSTED: queue full"), HasSubstr("goodput 42.02")));
}

TEST(LoadReportTest, ALoadThatFailedWhollyIsAReportToo) {
  std::vector<RequestRecord> records(3);
  for (RequestRecord& record : records) record.status = absl::UnavailableError("no router");
  const LoadReport report = SummariseLoad(records, 0, {Slo{absl::Seconds(1), absl::Seconds(1)}});
  EXPECT_EQ(report.failed, 3);
  EXPECT_EQ(report.ttft.count, 0);
  EXPECT_EQ(report.requests_per_second, 0);
}

TEST(LoadReportTest, TwoReportsAreComparedByTheirRatios) {
  std::vector<RequestRecord> slow, fast;
  for (int i = 0; i < 10; ++i) {
    slow.push_back(Record(100 * i, 40, 10, 5));
    fast.push_back(Record(100 * i, 10, 10, 5));
  }
  const std::string a = LoadToJson(SummariseLoad(slow, 0, {}), {{"date", "today"}});
  const std::string b = LoadToJson(SummariseLoad(fast, 0, {}), {{"date", "tomorrow"}});
  EXPECT_THAT(a, HasSubstr(R"("context":{"date":"today"})"));
  ASSERT_OK_AND_ASSIGN(const LoadComparison comparison, CompareLoads("<a>.json", a, "b.json", b));
  EXPECT_THAT(comparison.table, AllOf(HasSubstr("ttft_ms p50"), HasSubstr("0.250"), HasSubstr("1.000")));
  EXPECT_THAT(comparison.svg, AllOf(HasSubstr("<svg "), HasSubstr("&#60;a&#62;.json"), HasSubstr(">0.250<")));
  EXPECT_THAT(CompareLoads("a", a, "b", "{}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("b is no report of tandem bench: ttft_ms.p50")));
  EXPECT_THAT(CompareLoads("a", "x", "b", b), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a is no JSON")));
}

}  // namespace
}  // namespace tandem
