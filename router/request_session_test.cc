#include "router/request_session.h"

#include <limits>
#include <string>
#include <vector>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request_session_fixture.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(RequestSessionTest, OpensBothLegsAtOnceForOneHandover) {
  Start();
  ASSERT_THAT(last_.starts, SizeIs(2));
  const auto& [decode, decode_start] = last_.starts[0];
  const auto& [prefill, prefill_start] = last_.starts[1];
  EXPECT_EQ(decode, kDecode);
  EXPECT_EQ(prefill, kPrefill);
  EXPECT_EQ(decode_start.handover, prefill_start.handover);
  EXPECT_NE(decode_start.id, prefill_start.id);
  EXPECT_EQ(decode_start.peer, kPrefill);
  EXPECT_EQ(prefill_start.peer, kDecode);
  EXPECT_THAT(prefill_start.tokens, ElementsAre(0, 1, 2));
}

TEST_F(RequestSessionTest, BothLegsAreTheClientsTraces) {
  Start();
  for (const auto& [worker, start] : last_.starts) EXPECT_EQ(start.trace_parent, "");
  request_.trace = {.trace_id = std::string(32, 'a'), .parent_id = std::string(16, 'b'), .is_sampled = true};
  Start();
  ASSERT_THAT(last_.starts, SizeIs(2));
  for (const auto& [worker, start] : last_.starts) {
    EXPECT_EQ(start.trace_parent, "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01");
  }
}

TEST_F(RequestSessionTest, StreamsFromBothLegsToTheEnd) {
  StartDecoding();
  Prefill({.finish = LegFinish::kHandedOver, .handover = Handover(), .transfer = absl::Milliseconds(3)});
  EXPECT_FALSE(last_.finished.has_value());
  Decode(Tokens({6}, LegFinish::kLength));
  EXPECT_EQ(text_, "defg");
  EXPECT_EQ(last_.update.finish, RequestFinish::kLength);
  EXPECT_THAT(last_.finished.value(), IsOk());
  EXPECT_EQ(session_->usage().completion_tokens, 4);
  EXPECT_EQ(session_->usage().stages.transfer, absl::Milliseconds(3));
}

TEST_F(RequestSessionTest, ASingleTokenNeedsNoDecodeWorker) {
  request_.sampling.max_tokens = 1;
  Start();
  ASSERT_THAT(last_.starts, SizeIs(1));
  EXPECT_EQ(last_.starts[0].first, kPrefill);
  EXPECT_FALSE(last_.starts[0].second.handover.is_set());
  Do(session_->OnWorkerLost(kDecode, now_));
  EXPECT_FALSE(last_.needs_placement);
  Prefill(Tokens({3}, LegFinish::kLength));
  EXPECT_THAT(last_.finished.value(), IsOk());
  EXPECT_EQ(text_, "d");
  EXPECT_EQ(session_->usage().decode_worker, "");
}

TEST_F(RequestSessionTest, TheLastTokenAfterALossNeedsNoDecodeWorker) {
  request_.sampling.max_tokens = 4;
  StartDecoding();
  Do(session_->OnWorkerLost(kDecode, now_));
  Do(session_->OnWorkerLost(kPrefill, now_));
  EXPECT_TRUE(last_.needs_placement || session_->waits_for_placement());
  Place(kPrefill2, kDecode2);
  ASSERT_THAT(last_.starts, SizeIs(1));
  EXPECT_EQ(last_.starts[0].first, kPrefill2);
  EXPECT_THAT(last_.starts[0].second.tokens, ElementsAre(0, 1, 2, 3, 4, 5));
  Prefill(Tokens({6}, LegFinish::kLength));
  EXPECT_THAT(last_.finished.value(), IsOk());
  EXPECT_EQ(text_, "defg");
}

TEST_F(RequestSessionTest, EndsWithTheFirstTokenAndClosesDecode) {
  Start();
  Prefill(Tokens({3}, LegFinish::kLength));
  EXPECT_THAT(last_.finished.value(), IsOk());
  bool closes_decode = false;
  for (const auto& [worker, cancel] : last_.cancels) closes_decode |= worker == kDecode;
  EXPECT_TRUE(closes_decode);
}

TEST_F(RequestSessionTest, TokensOfDecodeThatOvertakeTheFirstWaitForIt) {
  Start();
  Decode({.taken_over = true});
  Decode(Tokens({4}));
  Decode(Tokens({5}, LegFinish::kLength));
  EXPECT_EQ(text_, "");
  Prefill(Tokens({3}));
  EXPECT_EQ(text_, "def");
  EXPECT_THAT(last_.finished.value(), IsOk());
}

TEST_F(RequestSessionTest, StopStringAcrossTokensEndsTheTextBeforeIt) {
  request_.stops = {"ef"};
  Start();
  Prefill(Tokens({3}));
  Decode({.taken_over = true});
  Decode(Tokens({4}));
  EXPECT_EQ(text_, "d");  // "e" may begin the stop string.
  Decode(Tokens({5}));
  EXPECT_EQ(text_, "d");
  EXPECT_EQ(last_.update.finish, RequestFinish::kStop);
  EXPECT_THAT(last_.cancels, testing::Not(IsEmpty()));
}

TEST_F(RequestSessionTest, MinTokensHoldBackStopStrings) {
  request_.stops = {"d"};
  request_.sampling.min_tokens = 2;
  Start();
  Prefill(Tokens({3}));
  EXPECT_FALSE(last_.finished.has_value());
  EXPECT_EQ(text_, "d");
}

TEST_F(RequestSessionTest, PrefillLostBeforeTakeOverStartsAgainWithTheTokensThereAre) {
  Start();
  Prefill(Tokens({3}));
  Do(session_->OnWorkerLost(kPrefill, now_));
  EXPECT_TRUE(last_.needs_placement);
  EXPECT_THAT(session_->placement_request().avoid, ElementsAre(kPrefill));
  EXPECT_FALSE(session_->placement_request().fixed_prefill.is_set());
  Place(kPrefill2, kDecode2);
  EXPECT_THAT(last_.starts[0].second.tokens, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(last_.starts[0].second.output_tokens, 1);
  EXPECT_EQ(session_->usage().retries, 1);
  Prefill(Tokens({4}));
  EXPECT_EQ(text_, "de");
}

TEST_F(RequestSessionTest, PrefillLostAfterTakeOverChangesNothing) {
  StartDecoding();
  Do(session_->OnWorkerLost(kPrefill, now_));
  EXPECT_FALSE(last_.needs_placement);
  Decode(Tokens({6}, LegFinish::kStop));
  EXPECT_EQ(text_, "defg");
  EXPECT_EQ(session_->usage().retries, 0);
}

TEST_F(RequestSessionTest, DecodeLostBeforeTakeOverSendsTheKvElsewhereWithoutASecondPrefill) {
  Start();
  Prefill(Tokens({3}));
  const RequestId prefill_leg = session_->prefill_leg();
  Do(session_->OnWorkerLost(kDecode, now_));
  EXPECT_TRUE(last_.needs_placement);
  EXPECT_EQ(session_->placement_request().fixed_prefill, kPrefill);
  Place(kPrefill, kDecode2);
  ASSERT_THAT(last_.starts, SizeIs(1));
  EXPECT_EQ(last_.starts[0].first, kDecode2);
  EXPECT_THAT(last_.starts[0].second.tokens, ElementsAre(0, 1, 2));  // The first token comes with the Commit.
  ASSERT_THAT(last_.cancels, SizeIs(1));
  EXPECT_EQ(last_.cancels[0].second.id, prefill_leg);
  EXPECT_EQ(last_.cancels[0].second.retarget, kDecode2);
  EXPECT_EQ(last_.cancels[0].second.handover, last_.starts[0].second.handover);
  Decode({.taken_over = true});
  Decode(Tokens({4}));
  EXPECT_EQ(text_, "de");
}

TEST_F(RequestSessionTest, DecodeLostMidStreamResumesWithTheTokensSent) {
  StartDecoding();
  Do(session_->OnWorkerLost(kDecode, now_));
  Place(kPrefill, kDecode2);
  EXPECT_THAT(last_.starts[0].second.tokens, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(last_.starts[0].second.output_tokens, 3);
  Prefill(Tokens({6}));
  EXPECT_EQ(text_, "defg");
}

TEST_F(RequestSessionTest, FailedHandoverGoesElsewhereAndOldNewsOfItIsIgnored) {
  Start();
  const HandoverId first = last_.starts[0].second.handover;
  Prefill(Tokens({3}));
  LegEvent failed{.handover_error = Retryable(ErrorReason::kPoolExhausted), .handover = first};
  Prefill(failed);
  EXPECT_TRUE(last_.needs_placement);
  Place(kPrefill, kDecode2);
  Prefill(failed);  // The same word again, about a hand-over that is over.
  EXPECT_FALSE(last_.needs_placement);
}

TEST_F(RequestSessionTest, AFullDecodeWorkerCostsNoRetryAndOtherFailuresDo) {
  options_.max_retries = 1;
  Start();
  Prefill(Tokens({3}));
  for (int i = 0; i < 5; ++i) {
    Prefill({.handover_error = Retryable(ErrorReason::kPoolExhausted), .handover = Handover()});
    ASSERT_TRUE(last_.needs_placement);
    Place(kPrefill, kDecode);
  }
  EXPECT_EQ(session_->usage().retries, 0);
  EXPECT_FALSE(last_.down_link.has_value());
  Prefill({.handover_error = Retryable(ErrorReason::kLinkDown), .handover = Handover()});
  EXPECT_EQ(session_->usage().retries, 1);
  EXPECT_EQ(last_.down_link, std::pair(kPrefill, kDecode));  // So that the next try is not there, too.
}

TEST_F(RequestSessionTest, AnAckThatWasLostLeavesDecodeAlone) {
  StartDecoding();
  Prefill({.handover_error = Retryable(ErrorReason::kLinkDown), .handover = Handover()});
  EXPECT_FALSE(last_.needs_placement);
  ASSERT_THAT(last_.cancels, SizeIs(1));
  EXPECT_EQ(last_.cancels[0].first, kPrefill);
  Decode(Tokens({6}, LegFinish::kLength));
  EXPECT_EQ(text_, "defg");
  EXPECT_EQ(session_->usage().retries, 0);
}

TEST_F(RequestSessionTest, StartsAgainWhenTheDecodeWorkerThatTookOverIsGone) {
  Start();
  const HandoverId first = Handover();
  Prefill(Tokens({3}));
  Do(session_->OnWorkerLost(kDecode, now_));
  const bool placed_already[] = {false, true};
  for (bool placed : placed_already) {
    if (placed) Place(kPrefill, kDecode2);
    // Prefill had the Ack before it heard of the move: the KV is gone with the worker.
    Prefill({.finish = LegFinish::kHandedOver, .handover = first});
    EXPECT_TRUE(last_.needs_placement);
    EXPECT_FALSE(session_->placement_request().fixed_prefill.is_set());
    Start();
    Prefill(Tokens({3}));
    Do(session_->OnWorkerLost(kDecode, now_));
  }
}

TEST_F(RequestSessionTest, PlacesAMovedRequestByAllItsTokens) {
  StartDecoding();
  Do(session_->OnWorkerLost(kDecode, now_));
  EXPECT_THAT(session_->placement_request().tokens, ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST_F(RequestSessionTest, GivesUpAfterTooManyRetries) {
  options_.max_retries = 2;
  Start();
  for (int i = 0; i < 2; ++i) {
    Do(session_->OnWorkerLost(kPrefill, now_));
    ASSERT_TRUE(last_.needs_placement);
    Place(kPrefill, kDecode);
  }
  Do(session_->OnWorkerLost(kPrefill, now_));
  EXPECT_THAT(last_.finished.value(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("2 retries")));
}

TEST_F(RequestSessionTest, ErrorsThatNoRetryHelpsEndIt) {
  Start();
  Prefill({.error = absl::InvalidArgumentError("prompt: bad")});
  EXPECT_THAT(last_.finished.value(), StatusIs(absl::StatusCode::kInvalidArgument));
  bool closes_decode = false;
  for (const auto& [worker, cancel] : last_.cancels) closes_decode |= worker == kDecode;
  EXPECT_TRUE(closes_decode);
}

TEST_F(RequestSessionTest, RetryableErrorOfALegStartsAgain) {
  Start();
  Prefill({.error = Retryable(ErrorReason::kQueueFull)});
  EXPECT_TRUE(last_.needs_placement);
  EXPECT_FALSE(last_.finished.has_value());
}

TEST_F(RequestSessionTest, CancelClosesBothLegsInEveryState) {
  for (int tokens = 0; tokens < 3; ++tokens) {
    Start();
    if (tokens > 0) Prefill(Tokens({3}));
    if (tokens > 1) Decode(Tokens({4}));
    Do(session_->OnCancel(now_));
    EXPECT_THAT(last_.finished.value(), StatusIs(absl::StatusCode::kCancelled));
    EXPECT_THAT(last_.cancels, SizeIs(2));
    EXPECT_FALSE(session_->OnCancel(now_).finished.has_value());
  }
}

TEST_F(RequestSessionTest, DeadlineEndsItInEveryState) {
  request_.deadline = kNow + absl::Seconds(1);
  Start();
  EXPECT_FALSE(Do(session_->OnTick(kNow)).finished.has_value());
  EXPECT_THAT(Do(session_->OnTick(kNow + absl::Seconds(1))).finished.value(),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(last_.cancels, SizeIs(2));
}

TEST_F(RequestSessionTest, PlacementKnowsHowManyTokensThereMayBe) {
  Start();
  EXPECT_EQ(session_->placement_request().max_output_tokens, std::numeric_limits<int>::max());  // 0 is no limit.
  request_.sampling.max_tokens = 7;
  Start();
  EXPECT_EQ(session_->placement_request().max_output_tokens, 7);
  Prefill(Tokens({3}));
  EXPECT_EQ(session_->placement_request().max_output_tokens, 6);
}

TEST_F(RequestSessionTest, TellsWorkersWhenItsFirstTokenIsWanted) {
  const auto due_after = [&](absl::Duration waited) {
    Begin();
    now_ = kNow + waited;
    Place(kPrefill, kDecode);
    EXPECT_EQ(last_.starts[0].second.due, last_.starts[1].second.due);
    return last_.starts[0].second.due;
  };
  EXPECT_EQ(due_after(absl::Seconds(1)), Request::kPatience - absl::Seconds(1));
  request_.deadline = kNow + absl::Seconds(20);
  EXPECT_EQ(due_after(absl::Seconds(1)), absl::Seconds(19));
  request_.ttft_limit = absl::Seconds(5);
  EXPECT_EQ(due_after(absl::Seconds(1)), absl::Seconds(4));
  EXPECT_EQ(due_after(absl::Seconds(7)), -absl::Seconds(2));
}

TEST_F(RequestSessionTest, WaitsForWorkersOnlySoLong) {
  Begin();
  Do(session_->OnPlaced(Retryable(ErrorReason::kLinkDown), view_, kNow));
  EXPECT_TRUE(session_->waits_for_placement());
  EXPECT_FALSE(Do(session_->OnTick(kNow + absl::Seconds(9))).finished.has_value());
  EXPECT_THAT(Do(session_->OnTick(kNow + absl::Seconds(11))).finished.value(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("because")));
}

TEST_F(RequestSessionTest, OneWorkerDoesBothWithoutAHandover) {
  options_.split = false;
  Begin();
  Place(Incarnation(), kDecode);
  ASSERT_THAT(last_.starts, SizeIs(1));
  EXPECT_FALSE(last_.starts[0].second.handover.is_set());
  Decode(Tokens({3}));
  Decode(Tokens({4}, LegFinish::kStop));
  EXPECT_EQ(text_, "de");
}

TEST_F(RequestSessionTest, SamplesHaveSeedsOfTheirOwn) {
  request_.sampling.seed = 5;
  std::vector<uint64_t> seeds;
  for (int sample : {0, 1, 2}) {
    Begin(sample);
    Place(kPrefill, kDecode);
    seeds.push_back(last_.starts[0].second.sampling.seed);
  }
  EXPECT_EQ(seeds[0], 5);
  // The sampler counts its draws up from the seed by this: no sample may draw what another one does some tokens later.
  constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;
  for (uint64_t shift = 0; shift < 10'000; ++shift) {
    for (const auto& [a, b] : {std::pair{0, 1}, {0, 2}, {1, 2}}) {
      ASSERT_NE(seeds[a], seeds[b] + shift * kStep);
      ASSERT_NE(seeds[b], seeds[a] + shift * kStep);
    }
  }
}

}  // namespace
}  // namespace tandem
