#include "prefill/prefill_worker.h"

#include <memory>
#include <string>
#include <vector>

#include "common/error_reason.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Incarnation kDecode(11), kDecode2(12);
constexpr HandoverId kHandover(5), kHandover2(6);
constexpr RequestId kLeg(1);

// Remembers what it was asked to move.
class FakeDestination final : public KvDestination {
 public:
  void Start(Incarnation peer, HandoverId handover, std::vector<TokenId>, std::vector<PageIndex> pages) override {
    starts.emplace_back(peer, handover);
    num_pages = static_cast<int>(pages.size());
  }
  void LayersReady(Incarnation, HandoverId handover, IndexRange tokens, IndexRange layers,
                   std::shared_ptr<const SourceEvent>) override {
    if (handover == starts.back().second) moved += (tokens.end - tokens.begin) * (layers.end - layers.begin);
  }
  void Finish(Incarnation, HandoverId handover, TokenId) override { finished.push_back(handover); }
  void Cancel(Incarnation, HandoverId handover, const std::string&) override { cancelled.push_back(handover); }
  std::vector<std::pair<Incarnation, HandoverId>> starts;
  std::vector<HandoverId> finished, cancelled;
  int num_pages = 0;
  int moved = 0;  // Token-layers of the newest hand-over.
};

// Whether engine steps are ordered before the tokens of the one before are known.
class PrefillWorkerTest : public testing::TestWithParam<bool> {
 protected:
  PrefillWorkerTest()
      : fixture_(SourcePath("tests/golden/tiny/llama3_f32"), {.max_step_tokens = 16, .run_ahead = GetParam()}, clock_),
        metrics_(metrics_server_),
        worker_(absl::Seconds(30), clock_, destination_, metrics_, [this](int64_t, EventFrame frame) {
          frames_.push_back(frame.events.size());
          for (LegEvent& event : frame.events) events_.push_back(std::move(event));
        }) {}

  Engine& engine() { return fixture_.engine(); }
  void StartLegOf(int prompt_tokens, int max_tokens = 10, HandoverId handover = kHandover) {
    StartLeg start{.id = kLeg, .peer = kDecode, .handover = handover};
    for (int i = 0; i < prompt_tokens; ++i) start.tokens.push_back(5 + i);
    start.sampling.max_tokens = max_tokens;
    start.sampling.ignore_eos = true;
    worker_.OnCommands(engine(), /*session=*/1, {.starts = {start}});
  }
  void StepOnce() {
    worker_.OnEngineEvents(
        engine(), engine().Step([this](const KvProgress& progress) { worker_.OnProgress(engine(), progress); }));
  }
  // A step, and what it has sampled.
  void Step() {
    StepOnce();
    if (GetParam()) StepOnce();
  }
  void Outcome(HandoverOutcome::Kind kind, HandoverId handover = kHandover,
               ErrorReason reason = ErrorReason::kUnknown) {
    worker_.OnOutcome(engine(), {.handover = handover, .kind = kind, .error_reason = reason});
  }
  bool AllPagesFree() {
    while (engine().HasWork()) StepOnce();  // What is in flight keeps its pages.
    return engine().cache().pool().available() == engine().cache().pool().num_pages();
  }

  FakeClock clock_;
  EngineFixture fixture_;
  MetricsServer metrics_server_;
  PrefillMetrics metrics_;
  FakeDestination destination_;
  std::vector<LegEvent> events_;
  std::vector<size_t> frames_;  // Sizes.
  PrefillWorker worker_;
};

TEST_P(PrefillWorkerTest, OffersWhenScheduledStreamsTheFirstTokenAndFreesPagesAfterAck) {
  StartLegOf(40);
  EXPECT_THAT(destination_.starts, IsEmpty());
  for (int i = 0; i < 3; ++i) Step();
  ASSERT_THAT(destination_.starts, SizeIs(1));
  EXPECT_EQ(destination_.num_pages, 3);
  EXPECT_EQ(destination_.moved, 40 * 2);  // Each token of each layer.
  ASSERT_THAT(events_, SizeIs(1));
  EXPECT_THAT(events_[0].tokens, SizeIs(1));
  EXPECT_THAT(destination_.finished, SizeIs(1));
  EXPECT_FALSE(AllPagesFree());
  Outcome(HandoverOutcome::Kind::kAcked);
  EXPECT_EQ(events_.back().finish, LegFinish::kHandedOver);
  EXPECT_TRUE(AllPagesFree());
  EXPECT_EQ(worker_.num_legs(), 0);
}

TEST_P(PrefillWorkerTest, CancelStopsComputingAtOnceButKeepsThePagesUntilTheOutcome) {
  StartLegOf(40);
  Step();
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg}}});
  EXPECT_TRUE(engine().scheduler().empty());
  EXPECT_THAT(destination_.cancelled, SizeIs(1));
  EXPECT_FALSE(AllPagesFree());
  Outcome(HandoverOutcome::Kind::kAborted);
  EXPECT_TRUE(AllPagesFree());
  EXPECT_THAT(events_, IsEmpty());  // The router did not ask to be told.
}

TEST_P(PrefillWorkerTest, CancelOfAQueuedLegFreesItAtOnce) {
  StartLegOf(40);
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg}}});
  EXPECT_EQ(worker_.num_legs(), 0);
  EXPECT_FALSE(engine().HasWork());
}

TEST_P(PrefillWorkerTest, ARouterThatIsGoneTakesItsLegsAlong) {
  StartLegOf(10);
  Step();
  worker_.OnSessionClosed(engine(), /*session=*/2);
  EXPECT_EQ(worker_.num_legs(), 1);
  worker_.OnSessionClosed(engine(), /*session=*/1);
  Outcome(HandoverOutcome::Kind::kAborted);
  EXPECT_EQ(worker_.num_legs(), 0);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, KeepsTheKvOfAFailedHandoverForAnotherDecode) {
  StartLegOf(10);
  Step();
  Outcome(HandoverOutcome::Kind::kLost, kHandover, ErrorReason::kLinkDown);
  EXPECT_EQ(GetErrorReason(events_.back().handover_error), ErrorReason::kLinkDown);
  EXPECT_EQ(events_.back().handover, kHandover);
  destination_.moved = 0;
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg, .retarget = kDecode2, .handover = kHandover2}}});
  ASSERT_THAT(destination_.starts, SizeIs(2));
  EXPECT_EQ(destination_.starts[1], std::pair(kDecode2, kHandover2));
  EXPECT_EQ(destination_.moved, 10 * 2);
  EXPECT_THAT(destination_.finished, SizeIs(2));
  Outcome(HandoverOutcome::Kind::kAborted, kHandover);  // Late news of the old one changes nothing.
  EXPECT_EQ(worker_.num_legs(), 1);
  Outcome(HandoverOutcome::Kind::kAcked, kHandover2);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, KeepsThePagesWhileAnOlderHandoverMayReadThem) {
  StartLegOf(10);
  Step();
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg, .retarget = kDecode2, .handover = kHandover2}}});
  EXPECT_THAT(destination_.cancelled, testing::ElementsAre(kHandover));
  Outcome(HandoverOutcome::Kind::kAcked, kHandover2);
  EXPECT_EQ(events_.back().finish, LegFinish::kHandedOver);
  EXPECT_FALSE(AllPagesFree());
  Outcome(HandoverOutcome::Kind::kAborted, kHandover);
  EXPECT_TRUE(AllPagesFree());
  EXPECT_EQ(worker_.num_legs(), 0);
}

TEST_P(PrefillWorkerTest, TellsWhichHandoverWasTakenWhenItIsNoLongerTheCurrentOne) {
  StartLegOf(10);
  Step();
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg, .retarget = kDecode2, .handover = kHandover2}}});
  Outcome(HandoverOutcome::Kind::kAcked, kHandover);  // Its Ack was on the way.
  EXPECT_EQ(events_.back().finish, LegFinish::kHandedOver);
  EXPECT_EQ(events_.back().handover, kHandover);
  EXPECT_THAT(destination_.cancelled, testing::ElementsAre(kHandover, kHandover2));
  Outcome(HandoverOutcome::Kind::kAborted, kHandover2);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, RetargetInTheMiddleOfThePromptMovesAllOfIt) {
  StartLegOf(40);
  Step();
  Outcome(HandoverOutcome::Kind::kRefused);
  Step();  // Goes on computing meanwhile.
  destination_.moved = 0;
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg, .retarget = kDecode2, .handover = kHandover2}}});
  Step();
  EXPECT_EQ(destination_.moved, 40 * 2);
  EXPECT_THAT(destination_.finished, SizeIs(1));
}

TEST_P(PrefillWorkerTest, TellsWhyAHandoverFailed) {
  StartLegOf(10);
  Step();
  Outcome(HandoverOutcome::Kind::kAborted, kHandover, ErrorReason::kChecksumMismatch);
  EXPECT_EQ(GetErrorReason(events_.back().handover_error), ErrorReason::kChecksumMismatch);
}

TEST_P(PrefillWorkerTest, GivesUpWhenNobodyTakesTheKv) {
  StartLegOf(10);
  Step();
  Outcome(HandoverOutcome::Kind::kRefused);
  clock_.Advance(absl::Seconds(31));
  worker_.OnTurn(engine());
  EXPECT_THAT(events_.back().error, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no decode worker")));
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, APassedDeadlineEndsALegBeforeAndAfterItsFirstToken) {
  for (int steps : {0, 1}) {
    StartLeg start{
        .id = kLeg, .tokens = {5, 6, 7}, .remaining = absl::Seconds(1), .peer = kDecode, .handover = kHandover};
    start.sampling.ignore_eos = true;
    worker_.OnCommands(engine(), 1, {.starts = {start}});
    for (int i = 0; i < steps; ++i) Step();
    clock_.Advance(absl::Seconds(2));
    Step();
    worker_.OnTurn(engine());
    EXPECT_THAT(events_.back().error, StatusIs(absl::StatusCode::kDeadlineExceeded)) << steps;
    if (steps > 0) Outcome(HandoverOutcome::Kind::kAborted);
    EXPECT_EQ(worker_.num_legs(), 0);
    EXPECT_TRUE(AllPagesFree());
  }
}

TEST_P(PrefillWorkerTest, AnAnswerThatEndsWithItsFirstTokenWithdrawsTheHandover) {
  StartLegOf(10, /*max_tokens=*/1);
  Step();
  EXPECT_EQ(events_.back().finish, LegFinish::kLength);
  EXPECT_THAT(destination_.finished, IsEmpty());
  EXPECT_THAT(destination_.cancelled, SizeIs(1));
  Outcome(HandoverOutcome::Kind::kAborted);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, WithoutAHandoverNothingIsOffered) {
  StartLegOf(10, /*max_tokens=*/1, HandoverId());
  Step();
  EXPECT_EQ(events_.back().finish, LegFinish::kLength);
  EXPECT_THAT(destination_.starts, IsEmpty());
  EXPECT_THAT(destination_.cancelled, IsEmpty());
  EXPECT_EQ(worker_.num_legs(), 0);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(PrefillWorkerTest, RefusesWhatTheEngineRefuses) {
  worker_.OnCommands(engine(), 1, {.starts = {StartLeg{.id = kLeg}}});
  ASSERT_THAT(events_, SizeIs(1));
  EXPECT_THAT(events_[0].error, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(worker_.num_legs(), 0);
}

INSTANTIATE_TEST_SUITE_P(Order, PrefillWorkerTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "RunAhead" : "OneByOne"; });

}  // namespace
}  // namespace tandem
