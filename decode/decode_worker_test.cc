#include "decode/decode_worker.h"

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

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Incarnation kPrefill(7);
constexpr HandoverId kHandover(5);
constexpr RequestId kLeg(1);

// Whether engine steps are ordered before the tokens of the one before are known.
class DecodeWorkerTest : public testing::TestWithParam<bool> {
 protected:
  DecodeWorkerTest()
      : fixture_(SourcePath("tests/golden/tiny/llama3_f32"), {.precision = Precision::kFull, .run_ahead = GetParam()},
                 clock_),
        metrics_(metrics_server_),
        pages_(engine()),
        receiver_({}, engine().layout(), fixture_.memory(), pages_),
        worker_(
            clock_, receiver_, metrics_,
            [this](int64_t, EventFrame frame) {
              frames_.push_back(frame.events.size());
              for (LegEvent& event : frame.events) events_.push_back(std::move(event));
            },
            [this](Incarnation, LinkMessage message) { sent_.push_back(std::move(message)); }) {
    HelloMessage hello;
    hello.incarnation = kPrefill;
    hello.layout = engine().layout();
    worker_.OnPeerUp(hello);
  }

  Engine& engine() { return fixture_.engine(); }
  StartLeg Leg(HandoverId handover = kHandover) {
    StartLeg start{.id = kLeg, .tokens = Prompt(), .peer = kPrefill, .handover = handover};
    start.sampling.max_tokens = 6;
    start.sampling.ignore_eos = true;
    return start;
  }
  static std::vector<TokenId> Prompt() {
    std::vector<TokenId> prompt;
    for (int i = 0; i < 20; ++i) prompt.push_back(5 + i);
    return prompt;
  }
  void Start(const StartLeg& start) { worker_.OnCommands(engine(), /*session=*/1, {.starts = {start}}); }
  void FromPeer(const LinkMessage& message) { worker_.OnLinkMessage(engine(), kPrefill, message); }
  void RunToEnd() {
    while (engine().HasWork()) worker_.OnEngineEvents(engine().Step(nullptr));
  }
  template <typename T>
  std::vector<T> Sent() {
    std::vector<T> found;
    for (const LinkMessage& message : sent_) {
      if (const T* match = std::get_if<T>(&message)) found.push_back(*match);
    }
    return found;
  }
  std::vector<TokenId> Tokens() {
    std::vector<TokenId> tokens;
    for (const LegEvent& event : events_) {
      for (const SampledToken& token : event.tokens) tokens.push_back(token.token);
    }
    return tokens;
  }
  int Count(PageState state) { return engine().cache().pool().count(state); }
  bool AllPagesFree() { return engine().cache().pool().available() == engine().cache().pool().num_pages(); }

  FakeClock clock_;
  EngineFixture fixture_;
  MetricsServer metrics_server_;
  DecodeMetrics metrics_;
  EngineHandoverPages pages_;
  KvReceiver receiver_;
  std::vector<LegEvent> events_;
  std::vector<size_t> frames_;  // Sizes.
  std::vector<LinkMessage> sent_;
  DecodeWorker worker_;
};

TEST_P(DecodeWorkerTest, ContinuesWithReceivedKv) {
  // The same request on a worker of its own says what must come, and whose KV to write.
  EngineFixture source(SourcePath("tests/golden/tiny/llama3_f32"), {.precision = Precision::kFull}, clock_);
  std::vector<TokenId> wanted = source.Generate(Prompt(), {.max_tokens = 6, .ignore_eos = true});
  SequenceRequest held{.id = RequestId(9), .tokens = Prompt(), .prompt_tokens = 20, .hold_after_first_token = true};
  ASSERT_THAT(source.engine().Add(held), IsOk());
  source.RunToEnd();

  FromPeer(OfferMessage{kHandover, Prompt()});
  EXPECT_THAT(Sent<GrantMessage>(), IsEmpty());  // The router has not started the leg.
  Start(Leg());
  ASSERT_THAT(Sent<GrantMessage>(), SizeIs(1));
  const GrantMessage grant = Sent<GrantMessage>()[0];
  EXPECT_EQ(Count(PageState::kGranted), 2);
  fixture_.CopyPages(source, source.engine().PagesOf(RequestId(9)), grant.pages);
  FromPeer(CommitMessage{kHandover, grant.epoch, 2, {}, wanted[0]});
  EXPECT_THAT(Sent<AckMessage>(), SizeIs(1));
  ASSERT_THAT(events_, SizeIs(1));
  EXPECT_TRUE(events_[0].taken_over);
  RunToEnd();
  EXPECT_EQ(Tokens(), std::vector<TokenId>(wanted.begin() + 1, wanted.end()));
  EXPECT_EQ(events_.back().finish, LegFinish::kLength);
  EXPECT_TRUE(AllPagesFree());
}

// Compiled when the leg starts, and followed behind the first token, which came with the KV.
TEST_P(DecodeWorkerTest, FollowsAFormatBehindReceivedKv) {
  SamplingParams sampling{.temperature = 1, .seed = 4, .max_tokens = 40};
  sampling.format = std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kRegex, "[a-c]{12}x"});
  EngineFixture source(SourcePath("tests/golden/tiny/llama3_f32"), {.precision = Precision::kFull}, clock_);
  const std::vector<TokenId> wanted = source.Generate(Prompt(), sampling);
  ASSERT_THAT(wanted, SizeIs(testing::Gt(3)));
  SequenceRequest held{.id = RequestId(9), .tokens = Prompt(), .prompt_tokens = 20, .hold_after_first_token = true};
  ASSERT_THAT(source.engine().Add(held), IsOk());
  source.RunToEnd();

  StartLeg leg = Leg();
  leg.sampling = sampling;
  Start(leg);
  FromPeer(OfferMessage{kHandover, Prompt()});
  ASSERT_THAT(Sent<GrantMessage>(), SizeIs(1));
  const GrantMessage grant = Sent<GrantMessage>()[0];
  fixture_.CopyPages(source, source.engine().PagesOf(RequestId(9)), grant.pages);
  FromPeer(CommitMessage{kHandover, grant.epoch, 2, {}, wanted[0]});
  RunToEnd();
  EXPECT_EQ(Tokens(), std::vector<TokenId>(wanted.begin() + 1, wanted.end()));
  EXPECT_EQ(events_.back().finish, LegFinish::kStop);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(DecodeWorkerTest, PrefillsItselfWithoutAHandover) {
  Start(Leg(HandoverId()));
  RunToEnd();
  EXPECT_THAT(Tokens(), SizeIs(6));
  EXPECT_EQ(worker_.num_legs(), 0);
}

TEST_P(DecodeWorkerTest, SendsTheTokensOfAStepInOneFrame) {
  for (uint64_t id : {1, 2, 3}) {
    StartLeg start = Leg(HandoverId());
    start.id = RequestId(id);
    Start(start);
  }
  frames_.clear();
  while (frames_.empty()) worker_.OnEngineEvents(engine().Step(nullptr));
  EXPECT_THAT(frames_, testing::ElementsAre(3));
}

TEST_P(DecodeWorkerTest, CancelBeforeTheCommitQuarantinesUntilAbortDone) {
  Start(Leg());
  FromPeer(OfferMessage{kHandover, Prompt()});
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg}}});
  EXPECT_EQ(Count(PageState::kQuarantined), 2);
  ASSERT_THAT(Sent<AbortMessage>(), SizeIs(1));
  FromPeer(AbortDoneMessage{kHandover, Sent<AbortMessage>()[0].epoch});
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(DecodeWorkerTest, CancelBetweenCommitAndTheNextStepFreesEverything) {
  Start(Leg());
  FromPeer(OfferMessage{kHandover, Prompt()});
  FromPeer(CommitMessage{kHandover, Sent<GrantMessage>()[0].epoch, 2, {}, 5});
  worker_.OnCommands(engine(), 1, {.cancels = {{.id = kLeg}}});
  EXPECT_TRUE(AllPagesFree());
  EXPECT_FALSE(engine().HasWork());
}

TEST_P(DecodeWorkerTest, ALostPrefillFailsItsLegsRetryably) {
  Start(Leg());
  FromPeer(OfferMessage{kHandover, Prompt()});
  worker_.OnPeerLost(kPrefill, /*writes_over=*/false);
  EXPECT_EQ(GetErrorReason(events_.back().error), ErrorReason::kWorkerLost);
  EXPECT_EQ(Count(PageState::kQuarantined), 2);
  worker_.OnWritesOver(kPrefill);
  EXPECT_TRUE(AllPagesFree());
}

TEST_P(DecodeWorkerTest, DeadlineEndsALegThatWaitsForKv) {
  StartLeg start = Leg();
  start.remaining = absl::Seconds(1);
  Start(start);
  FromPeer(OfferMessage{kHandover, Prompt()});
  clock_.Advance(absl::Seconds(2));
  worker_.OnTurn();
  EXPECT_THAT(events_.back().error, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(Sent<AbortMessage>(), SizeIs(1));
  EXPECT_EQ(worker_.num_legs(), 0);
}

TEST_P(DecodeWorkerTest, ADeadlineCountsFromTheStartNotFromWhenTheKvCame) {
  StartLeg start = Leg();
  start.remaining = absl::Seconds(2);
  Start(start);
  FromPeer(OfferMessage{kHandover, Prompt()});
  clock_.Advance(absl::Seconds(1));
  FromPeer(CommitMessage{kHandover, Sent<GrantMessage>()[0].epoch, 2, {}, 5});
  EXPECT_TRUE(events_.back().taken_over);
  clock_.Advance(absl::Seconds(1.5));
  RunToEnd();
  EXPECT_THAT(events_.back().error, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_P(DecodeWorkerTest, AnOfferWithoutALegIsRefusedInTheEnd) {
  FromPeer(OfferMessage{kHandover, Prompt()});
  clock_.Advance(absl::Seconds(6));
  worker_.OnTurn();
  ASSERT_THAT(Sent<RefuseMessage>(), SizeIs(1));
  EXPECT_THAT(Sent<RefuseMessage>()[0].reason, testing::HasSubstr("not started the decode leg"));
}

TEST_P(DecodeWorkerTest, RefusesKvOfOtherTokensThanItsLegHas) {
  Start(Leg());
  std::vector<TokenId> other = Prompt();
  other.push_back(7);
  FromPeer(OfferMessage{kHandover, other});
  ASSERT_THAT(Sent<RefuseMessage>(), SizeIs(1));
  EXPECT_THAT(Sent<GrantMessage>(), IsEmpty());
}

TEST_P(DecodeWorkerTest, GrantsNoMoreHandoversThanMayRun) {
  const int max_running = 32;  // The engine's default.
  for (int i = 0; i <= max_running; ++i) {
    StartLeg start = Leg(HandoverId(100 + i));
    start.id = RequestId(100 + i);
    start.tokens = {static_cast<TokenId>(5 + i)};
    Start(start);
    FromPeer(OfferMessage{start.handover, start.tokens});
  }
  ASSERT_THAT(Sent<GrantMessage>(), SizeIs(max_running));
  for (const GrantMessage& grant : Sent<GrantMessage>()) FromPeer(CommitMessage{grant.handover, grant.epoch, 1, {}, 5});
  EXPECT_THAT(Sent<GrantMessage>(), SizeIs(max_running));
  RunToEnd();
  EXPECT_THAT(Sent<GrantMessage>(), SizeIs(max_running + 1));  // One ended, and the last came in.
}

TEST_P(DecodeWorkerTest, SecondHandoverOfAPromptNamesOnlyMissingPages) {
  Start(Leg());
  FromPeer(OfferMessage{kHandover, Prompt()});
  FromPeer(CommitMessage{kHandover, Sent<GrantMessage>()[0].epoch, 2, {}, 5});
  RunToEnd();
  StartLeg second = Leg(HandoverId(6));
  second.id = RequestId(2);
  Start(second);
  FromPeer(OfferMessage{HandoverId(6), Prompt()});
  ASSERT_THAT(Sent<GrantMessage>(), SizeIs(2));
  EXPECT_EQ(Sent<GrantMessage>()[1].first_missing_page, 1);
  EXPECT_THAT(Sent<GrantMessage>()[1].pages, SizeIs(1));
}

INSTANTIATE_TEST_SUITE_P(Order, DecodeWorkerTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "RunAhead" : "OneByOne"; });

}  // namespace
}  // namespace tandem
