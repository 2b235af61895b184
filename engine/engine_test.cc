#include "engine/engine.h"

#include <algorithm>
#include <boost/json.hpp>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/error_reason.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string TinyModel() { return SourcePath("tests/golden/tiny/llama3_f32"); }

std::vector<TokenId> Prompt(int tokens, int salt = 0) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(2 + (i * 31 + salt * 17) % 300);
  return prompt;
}

SequenceRequest Request(uint64_t id, std::vector<TokenId> prompt, SamplingParams sampling) {
  SequenceRequest request;
  request.id = RequestId(id);
  request.prompt_tokens = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.sampling = std::move(sampling);
  return request;
}

// Whether steps are ordered before the tokens of the one before are known.
class EngineTest : public testing::TestWithParam<bool> {
 protected:
  void Make(Engine::Options options = {}) {
    options.run_ahead = GetParam();
    fixture_ = std::make_unique<EngineFixture>(TinyModel(), options, clock_);
  }
  Engine& engine() { return fixture_->engine(); }
  bool AllPagesFree() {
    fixture_->RunToEnd();  // What is in flight keeps its pages.
    const PagePool& pool = engine().cache().pool();
    return pool.available() == pool.num_pages();
  }
  // What followed `prompt` is as wanted. On a GPU, sums in another order may turn two tokens that
  // are as good: what follows is not compared then.
  void ExpectOutput(const std::vector<TokenId>& got, const std::vector<TokenId>& wanted, std::vector<TokenId> prompt) {
    if (!TestsRunOnGpu() || got == wanted) {
      EXPECT_EQ(got, wanted);
      return;
    }
    ASSERT_EQ(got.size(), wanted.size());
    const size_t at = std::mismatch(got.begin(), got.end(), wanted.begin()).first - got.begin();
    prompt.insert(prompt.end(), wanted.begin(), wanted.begin() + at);
    Make();
    ASSERT_OK_AND_ASSIGN(auto scores, engine().ScoreAll(prompt));
    EXPECT_NEAR(scores.back()[got[at]], scores.back()[wanted[at]], 0.05) << "at token " << at;
  }
  FakeClock clock_;
  std::unique_ptr<EngineFixture> fixture_;
};

TEST_P(EngineTest, ChunksBatchesAndPagesChangeNoToken) {
  Make({.max_step_tokens = 512});
  std::vector<std::vector<TokenId>> wanted;
  for (int i = 0; i < 5; ++i)
    wanted.push_back(fixture_->Generate(Prompt(20 + 7 * i, i), {.max_tokens = 12, .ignore_eos = true}));
  for (int page_tokens : {1, 5, 16, 64}) {
    for (int step : {5, 13, 512}) {
      Make({.page_tokens = page_tokens, .max_step_tokens = step, .max_running = 5});
      for (int i = 0; i < 5; ++i) {
        ASSERT_THAT(engine().Add(Request(i + 1, Prompt(20 + 7 * i, i), {.max_tokens = 12, .ignore_eos = true})),
                    IsOk());
      }
      std::vector<std::vector<TokenId>> got(5);
      for (const SequenceEvent& event : fixture_->RunToEnd()) got[event.id.value() - 1].push_back(event.token->token);
      EXPECT_TRUE(AllPagesFree());
      SCOPED_TRACE(testing::Message() << "pages of " << page_tokens << ", steps of " << step);
      for (int i = 0; i < 5; ++i) ExpectOutput(got[i], wanted[i], Prompt(20 + 7 * i, i));
    }
  }
}

TEST_P(EngineTest, SeededSamplingDoesNotDependOnTheBatch) {
  Make();
  SamplingParams sampling{.temperature = 1.5, .top_k = 50, .seed = 7, .max_tokens = 10, .ignore_eos = true};
  std::vector<TokenId> alone = fixture_->Generate(Prompt(9), sampling);
  Make();
  for (int i = 0; i < 6; ++i) ASSERT_THAT(engine().Add(Request(i + 1, Prompt(9, i), sampling)), IsOk());
  std::vector<TokenId> in_batch;
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    if (event.id == RequestId(1)) in_batch.push_back(event.token->token);
  }
  EXPECT_EQ(in_batch, alone);
}

TEST_P(EngineTest, PrefixHitsChangeNoToken) {
  Make();
  std::vector<TokenId> first = fixture_->Generate(Prompt(50), {.max_tokens = 8, .ignore_eos = true});
  ASSERT_THAT(engine().Add(Request(9, Prompt(50), {.max_tokens = 8, .ignore_eos = true})), IsOk());
  std::vector<TokenId> second;
  int cached = 0;
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    if (event.first_token) cached = event.cached_tokens;
    second.push_back(event.token->token);
  }
  EXPECT_EQ(cached, 48);
  EXPECT_EQ(second, first);
}

TEST_P(EngineTest, PreemptionChangesNoToken) {
  Make();
  std::vector<std::vector<TokenId>> wanted;
  for (int i = 0; i < 3; ++i)
    wanted.push_back(fixture_->Generate(Prompt(10, i), {.max_tokens = 40, .ignore_eos = true}));
  const int64_t page_bytes = engine().layout().page_bytes();
  Make({.kv_memory_bytes = 7 * page_bytes});
  for (int i = 0; i < 3; ++i)
    ASSERT_THAT(engine().Add(Request(i + 1, Prompt(10, i), {.max_tokens = 40, .ignore_eos = true})), IsOk());
  std::vector<std::vector<TokenId>> got(3);
  for (const SequenceEvent& event : fixture_->RunToEnd()) got[event.id.value() - 1].push_back(event.token->token);
  EXPECT_GT(engine().scheduler().preemptions(), 0);
  for (int i = 0; i < 3; ++i) ExpectOutput(got[i], wanted[i], Prompt(10, i));
}

TEST_P(EngineTest, StopsAtStopTokensAndLimits) {
  Make();
  std::vector<TokenId> free = fixture_->Generate(Prompt(9), {.max_tokens = 10, .ignore_eos = true});
  SamplingParams stop{.max_tokens = 10, .ignore_eos = true};
  stop.stop_token_ids = {free[3]};
  size_t at = std::find(free.begin(), free.end(), free[3]) - free.begin();
  EXPECT_EQ(fixture_->Generate(Prompt(9), stop), std::vector<TokenId>(free.begin(), free.begin() + at));
  stop.min_tokens = 6;
  EXPECT_GE(fixture_->Generate(Prompt(9), stop).size(), 6);
  EXPECT_THAT(fixture_->Generate(Prompt(500), {.ignore_eos = true}),
              SizeIs(12));  // The context is 512.
}

constexpr char kSmallSchema[] = R"({"type": "object", "additionalProperties": false, "required": ["n", "colour"],
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "colour": {"enum": ["red", "green"]}}})";

SamplingParams Formatted(std::string schema, float temperature, uint64_t seed) {
  SamplingParams sampling{.temperature = temperature, .seed = seed, .max_tokens = 400};
  sampling.format = std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kJsonSchema, std::move(schema)});
  return sampling;
}

SamplingParams Matching(std::string regex, float temperature, uint64_t seed) {
  SamplingParams sampling = Formatted("", temperature, seed);
  sampling.format = std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kRegex, std::move(regex)});
  return sampling;
}

// Of the tiny model.
std::string TextOf(absl::Span<const TokenId> tokens) {
  auto checkpoint = Checkpoint::Open(TinyModel());
  auto tokenizer = (*checkpoint)->LoadTokenizer();
  EXPECT_THAT(tokenizer, IsOk());
  return (*tokenizer)->Decode(tokens);
}

void ExpectFollowsSmallSchema(const std::string& text) {
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(text, error);
  ASSERT_FALSE(error) << text;
  ASSERT_TRUE(value.is_object()) << text;
  EXPECT_EQ(value.get_object().size(), 2) << text;
  EXPECT_TRUE(value.at("n").is_int64() && value.at("n").get_int64() >= 0 && value.at("n").get_int64() < 100) << text;
  EXPECT_THAT(std::string(value.at("colour").as_string()), AnyOf("red", "green"));
}

TEST_P(EngineTest, AnswersHaveTheFormatThatWasAskedFor) {
  Make();
  for (int i = 0; i < 6; ++i) {
    SamplingParams sampling = Formatted(kSmallSchema, i == 0 ? 0 : 1.5, i);
    // The answer's end is its own.
    sampling.ignore_eos = i % 2 == 1;
    sampling.min_tokens = i % 3 == 1 ? 300 : 0;
    if (i % 3 == 2) sampling.logprobs = 2;
    ExpectFollowsSmallSchema(TextOf(fixture_->Generate(Prompt(9, i), sampling)));
  }
}

TEST_P(EngineTest, FormatsOfSomeChangeNothingForOthers) {
  Make();
  const SamplingParams free{.temperature = 1.5, .top_k = 50, .seed = 7, .max_tokens = 30, .ignore_eos = true};
  const std::vector<TokenId> alone = fixture_->Generate(Prompt(9), free);
  Make();
  ASSERT_THAT(engine().Add(Request(1, Prompt(9), free)), IsOk());
  for (int i = 2; i < 6; ++i) {
    ASSERT_THAT(engine().Add(Request(i, Prompt(9, i), Formatted(kSmallSchema, 1.5, i))), IsOk());
  }
  std::map<uint64_t, std::vector<TokenId>> got;
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    ASSERT_THAT(event.error, IsOk());
    if (event.token.has_value()) got[event.id.value()].push_back(event.token->token);
  }
  EXPECT_EQ(got[1], alone);
  for (int i = 2; i < 6; ++i) ExpectFollowsSmallSchema(TextOf(got[i]));
  EXPECT_TRUE(AllPagesFree());
}

// As after a retry or a hand-over.
TEST_P(EngineTest, FormatsGoOnBehindEarlierOutput) {
  Make();
  const SamplingParams sampling = Formatted(kSmallSchema, 1.5, 3);
  const std::vector<TokenId> whole = fixture_->Generate(Prompt(9), sampling);
  for (size_t known : {size_t{1}, whole.size() / 2, whole.size() - 1, whole.size()}) {
    SequenceRequest request = Request(50 + known, Prompt(9), sampling);
    request.tokens.insert(request.tokens.end(), whole.begin(), whole.begin() + known);
    ASSERT_THAT(engine().Add(std::move(request)), IsOk());
    std::vector<TokenId> rest(whole.begin(), whole.begin() + known);
    for (const SequenceEvent& event : fixture_->RunToEnd()) {
      EXPECT_THAT(event.error, IsOk());
      if (event.token.has_value()) rest.push_back(event.token->token);
    }
    ExpectFollowsSmallSchema(TextOf(rest));
    if (!TestsRunOnGpu()) {
      EXPECT_EQ(rest, whole) << known << " were known";
    }
  }
}

TEST_P(EngineTest, PreemptionLeavesFormatsWhereTheyAre) {
  constexpr char kLong[] = "[a-e]{200}!";  // So long that all three run beside one another.
  Make();
  std::vector<std::vector<TokenId>> wanted;
  for (int i = 0; i < 3; ++i) wanted.push_back(fixture_->Generate(Prompt(10, i), Matching(kLong, 1, i)));
  const int64_t page_bytes = engine().layout().page_bytes();
  const int pages = static_cast<int>((10 + wanted[0].size() + 15) / 16) + 3;  // Of one answer, and a few more.
  Make({.kv_memory_bytes = pages * page_bytes});
  for (int i = 0; i < 3; ++i) ASSERT_THAT(engine().Add(Request(i + 1, Prompt(10, i), Matching(kLong, 1, i))), IsOk());
  std::vector<std::vector<TokenId>> got(3);
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    ASSERT_THAT(event.error, IsOk());
    if (event.token.has_value()) got[event.id.value() - 1].push_back(event.token->token);
  }
  EXPECT_GT(engine().scheduler().preemptions(), 0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(TextOf(got[i]), AllOf(SizeIs(201), EndsWith("!")));
    if (!TestsRunOnGpu()) {
      EXPECT_EQ(got[i], wanted[i]);
    }
  }
}

TEST_P(EngineTest, StopTokensWaitForMinTokensBesideAFormatToo) {
  Make();
  SamplingParams sampling = Matching("[ab]{60}", 1, 5);
  const std::vector<TokenId> free = fixture_->Generate(Prompt(9), sampling);
  ASSERT_THAT(free, SizeIs(60));
  sampling.stop_token_ids = {free[2]};
  EXPECT_LE(fixture_->Generate(Prompt(9), sampling).size(), 2);
  sampling.min_tokens = 30;
  EXPECT_GE(fixture_->Generate(Prompt(9), sampling).size(), 30);
  // Where the format leaves nothing else, they do not wait.
  sampling.format = Matching("a{60}", 1, 5).format;
  sampling.stop_token_ids = fixture_->Generate(Prompt(9), Matching("a", 1, 5));
  EXPECT_THAT(fixture_->Generate(Prompt(9), sampling), IsEmpty());
}

TEST_P(EngineTest, FormatsThatAreNoneEndTheirRequests) {
  Make();
  const auto error_of = [&](std::string schema) {
    EXPECT_THAT(engine().Add(Request(1, Prompt(9), Formatted(std::move(schema), 0, 0))), IsOk());
    const std::vector<SequenceEvent> events = fixture_->RunToEnd();
    EXPECT_THAT(events, SizeIs(1));
    EXPECT_TRUE(AllPagesFree());
    return events[0].error;
  };
  EXPECT_THAT(error_of(R"({"type": "objekt"})"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("response_format: ")));
  fixture_ = std::make_unique<EngineFixture>(SourcePath("tests/golden/tiny/qwen3_bf16"), Engine::Options{}, clock_);
  EXPECT_THAT(error_of(kSmallSchema), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("tokenizer")));
}

TEST_P(EngineTest, ARequestMayEndWhileItsFormatIsCompiled) {
  Make();
  for (int i = 0; i < 20; ++i) {
    ASSERT_THAT(engine().Add(Request(1, Prompt(9), Formatted(kSmallSchema, 0, 0))), IsOk());
    if (i % 2 == 0) engine().Step(nullptr);
    EXPECT_TRUE(engine().Cancel(RequestId(1)));
  }
  ExpectFollowsSmallSchema(TextOf(fixture_->Generate(Prompt(9), Formatted(kSmallSchema, 0, 0))));
  EXPECT_TRUE(AllPagesFree());
}

// An engine whose last request was cancelled takes no step, which would free anything.
TEST_P(EngineTest, TheFormatOfACancelledRequestIsForgottenWithoutAStep) {
  Make();
  SequenceRequest request = Request(1, Prompt(9), Formatted(kSmallSchema, 0, 0));
  request.format_job = engine().CompileFormat(request.sampling.format, {});
  const std::weak_ptr<FormatJob> job = request.format_job;
  ASSERT_THAT(engine().Add(std::move(request)), IsOk());
  EXPECT_TRUE(engine().Cancel(RequestId(1)));
  const absl::Time give_up = absl::Now() + absl::Seconds(60);  // The thread may be compiling it.
  while (!job.expired() && absl::Now() < give_up) std::this_thread::yield();
  EXPECT_TRUE(job.expired());
}

TEST_P(EngineTest, AFormatThatCannotBeFollowedEndsItsRequestOnly) {
  Make();
  SamplingParams sampling = Formatted("", 0, 0);
  std::string grammar = "start: r0";  // More rules at once than the parser follows.
  for (int i = 1; i < 3000; ++i) absl::StrAppend(&grammar, " | r", i);
  for (int i = 0; i < 3000; ++i) absl::StrAppend(&grammar, "\nr", i, ": \"a\" r", i, " | \"a\"");
  sampling.format = std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kLark, grammar});
  ASSERT_THAT(engine().Add(Request(1, Prompt(9), sampling)), IsOk());
  ASSERT_THAT(engine().Add(Request(2, Prompt(9), {.max_tokens = 20, .ignore_eos = true})), IsOk());
  absl::Status error;
  int tokens = 0;
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    if (event.id == RequestId(1) && !event.error.ok()) error = event.error;
    if (event.id == RequestId(2)) tokens += event.token.has_value();
  }
  EXPECT_THAT(error, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cannot be followed")));
  EXPECT_EQ(tokens, 20);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(EngineTest, RefusesWhatItCannotRun) {
  Make({.max_waiting = 1});
  EXPECT_THAT(engine().Add(Request(1, {}, {})), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(engine().Add(Request(1, {9999}, {})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("9999")));
  absl::Status too_long = engine().Add(Request(1, Prompt(512), {}));
  EXPECT_EQ(GetErrorReason(too_long), ErrorReason::kRequestTooLong);
  EXPECT_THAT(engine().Add(Request(1, Prompt(5), {})), IsOk());
  EXPECT_THAT(engine().Add(Request(1, Prompt(5), {})), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(GetErrorReason(engine().Add(Request(2, Prompt(5), {}))), ErrorReason::kQueueFull);
}

TEST_P(EngineTest, NeedsRoomForAPage) {
  absl::Status status = Engine::Create(*Checkpoint::Open(TinyModel()), {.kv_memory_bytes = 16}, clock_).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds no page")));
}

TEST_P(EngineTest, FailsASequenceWhoseDeadlinePassed) {
  Make();
  SequenceRequest request = Request(1, Prompt(5), {.max_tokens = 100});
  request.deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_THAT(engine().Add(std::move(request)), IsOk());
  engine().Step(nullptr);
  clock_.Advance(absl::Seconds(2));
  std::vector<SequenceEvent> events = engine().Step(nullptr);
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_THAT(events[0].error, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(EngineTest, CancelFreesPagesAtAnyStage) {
  Make({.max_step_tokens = 8});
  for (int steps : {0, 1, 3, 6}) {
    ASSERT_THAT(engine().Add(Request(1, Prompt(20), {.max_tokens = 50})), IsOk());
    for (int i = 0; i < steps; ++i) engine().Step(nullptr);
    EXPECT_TRUE(engine().Cancel(RequestId(1)));
    EXPECT_TRUE(AllPagesFree());
    EXPECT_FALSE(engine().Cancel(RequestId(1)));
  }
}

TEST_P(EngineTest, HeldSequenceReportsEachTokenAndLayerOnceAndKeepsItsPages) {
  Make({.max_step_tokens = 8, .layer_groups = 2});
  SequenceRequest request = Request(1, Prompt(20), {.max_tokens = 50});
  request.hold_after_first_token = true;
  ASSERT_THAT(engine().Add(std::move(request)), IsOk());
  std::vector<std::vector<int>> seen(20, std::vector<int>(2));
  int events = 0;
  while (engine().HasWork()) {
    events += static_cast<int>(engine()
                                   .Step([&](const KvProgress& done) {
                                     for (int t = done.begin_token; t < done.end_token; ++t) {
                                       for (int l = done.begin_layer; l < done.end_layer; ++l) ++seen[t][l];
                                     }
                                   })
                                   .size());
  }
  EXPECT_EQ(events, 1);
  for (const auto& layers : seen) EXPECT_EQ(layers, (std::vector<int>{1, 1}));
  EXPECT_EQ(engine().num_held(), 1);
  EXPECT_THAT(engine().PagesOf(RequestId(1)), SizeIs(2));
  EXPECT_TRUE(engine().Cancel(RequestId(1)));
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(EngineTest, ChoosesByEarlierOutputThatIsKnown) {
  Make();
  SamplingParams plain{.max_tokens = 12, .ignore_eos = true}, penalised = plain;
  penalised.repetition_penalty = 1000;
  const std::vector<TokenId> alone = fixture_->Generate(Prompt(9), penalised);
  EXPECT_EQ(std::set<TokenId>(alone.begin(), alone.end()).size(), alone.size());
  // Beside one whose tokens need not be known, which is ahead when this one comes.
  ASSERT_THAT(engine().Add(Request(1, Prompt(30), plain)), IsOk());
  std::vector<TokenId> beside;
  for (int i = 0; i < 4; ++i) engine().Step(nullptr);
  ASSERT_THAT(engine().Add(Request(2, Prompt(9), penalised)), IsOk());
  for (const SequenceEvent& event : fixture_->RunToEnd()) {
    if (event.id == RequestId(2)) beside.push_back(event.token->token);
  }
  EXPECT_EQ(beside, alone);
}

TEST_P(EngineTest, AnIdThatIsUsedAnewGetsNoTokenOfItsFormerSequence) {
  Make();
  const std::vector<TokenId> wanted = fixture_->Generate(Prompt(12, 5), {.max_tokens = 6, .ignore_eos = true});
  ASSERT_THAT(engine().Add(Request(1, Prompt(40), {.max_tokens = 50, .ignore_eos = true})), IsOk());
  for (int i = 0; i < 3; ++i) engine().Step(nullptr);
  EXPECT_TRUE(engine().Cancel(RequestId(1)));
  ASSERT_THAT(engine().Add(Request(1, Prompt(12, 5), {.max_tokens = 6, .ignore_eos = true})), IsOk());
  std::vector<TokenId> got;
  for (const SequenceEvent& event : fixture_->RunToEnd()) got.push_back(event.token->token);
  EXPECT_EQ(got, wanted);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(EngineTest, ContinuesFromReceivedKvAsIfItHadComputedIt) {
  for (bool float8_kv : {false, true}) {
    SCOPED_TRACE(float8_kv ? "KV in FP8" : "KV of the precision's type");
    const Engine::Options options = {.float8_kv = float8_kv, .run_ahead = GetParam()};
    EngineFixture whole(TinyModel(), options, clock_), prefill(TinyModel(), options, clock_),
        decode(TinyModel(), options, clock_);
    const std::vector<TokenId> wanted = whole.Generate(Prompt(21), {.max_tokens = 9, .ignore_eos = true});
    SequenceRequest request = Request(1, Prompt(21), {.max_tokens = 9, .ignore_eos = true});
    request.hold_after_first_token = true;
    ASSERT_THAT(prefill.engine().Add(request), IsOk());
    TokenId first = prefill.RunToEnd()[0].token->token;
    std::vector<PageIndex> pages = *decode.engine().cache().Allocate(2, PageState::kGranted);
    decode.CopyPages(prefill, prefill.engine().PagesOf(RequestId(1)), pages);
    request.hold_after_first_token = false;
    request.tokens.push_back(first);
    ASSERT_THAT(decode.engine().AddWithKv(request, pages), IsOk());
    std::vector<TokenId> got = {first};
    for (const SequenceEvent& event : decode.RunToEnd()) got.push_back(event.token->token);
    EXPECT_EQ(got, wanted);
  }
}

INSTANTIATE_TEST_SUITE_P(Order, EngineTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "RunAhead" : "OneByOne"; });

}  // namespace
}  // namespace tandem
