#include "router/placement.h"

#include <set>
#include <string>
#include <vector>

#include "common/error_reason.h"
#include "common/page_hash.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class PlacementTest : public testing::Test {
 protected:
  void Add(uint64_t id, Role role, const std::string& name, std::vector<uint64_t> links = {}) {
    WorkerRegistration registration{.worker_id = name,
                                    .incarnation = Incarnation(id),
                                    .role = role,
                                    .link_address = name,
                                    .domain = "rack",
                                    .total_pages = 100,
                                    .page_tokens = 4,
                                    .max_context_tokens = 1000};
    view_.Register(registration, kNow);
    view_.SetSessionUp(Incarnation(id), true);
    WorkerHeartbeat heartbeat{.free_pages = 100, .sequence = 1};
    for (uint64_t link : links) heartbeat.links.push_back({.peer = Incarnation(link), .up = true});
    view_.OnHeartbeat(Incarnation(id), heartbeat, kNow);
  }
  void TwoPlusTwo() {
    Add(11, Role::kDecode, "decode-0");
    Add(12, Role::kDecode, "decode-1");
    Add(1, Role::kPrefill, "prefill-0", {11, 12});
    Add(2, Role::kPrefill, "prefill-1", {11, 12});
  }
  // The worker has all of the prompt's full pages cached.
  void Cache(uint64_t id) {
    WorkerHeartbeat heartbeat = State(id);
    heartbeat.stored_hashes = ChainedPageHashes(tokens_, 4);
    ++heartbeat.sequence;
    view_.OnHeartbeat(Incarnation(id), heartbeat, kNow);
  }
  // It has been seen to compute so many tokens a second.
  void MeasurePrefill(uint64_t id, double rate) {
    view_.Find(Incarnation(id))->speed.OnFirstToken(rate, kNow, kNow + absl::Seconds(1));
  }
  // It has been seen to take so long for a step of one request.
  void MeasureDecode(uint64_t id, absl::Duration step) {
    WorkerSpeed& speed = view_.Find(Incarnation(id))->speed;
    speed.OnDecodeStep(1, 1, kNow);
    speed.OnDecodeStep(1, 1, kNow + step);
  }
  WorkerHeartbeat& State(uint64_t id) { return view_.Find(Incarnation(id))->heartbeat; }
  absl::StatusOr<Placement> Run(PlacementRequest request = {}) {
    request.tokens = tokens_;
    return Place(view_, request);
  }
  void Expect(uint64_t prefill, uint64_t decode, PlacementRequest request = {}) {
    ASSERT_OK_AND_ASSIGN(Placement placement, Run(request));
    EXPECT_EQ(placement.prefill, Incarnation(prefill));
    EXPECT_EQ(placement.decode, Incarnation(decode));
    EXPECT_FALSE(placement.reason.empty());
  }

  ClusterView view_;
  std::vector<TokenId> tokens_ = std::vector<TokenId>(40, 7);
};

TEST_F(PlacementTest, OfEqualsTwoAreDrawnAndTheOneWithFewerRequestsIsTaken) {
  TwoPlusTwo();
  Expect(1, 11);
  Expect(2, 12, {.random = 1 + (uint64_t{1} << 32)});
  view_.Find(Incarnation(1))->legs = 1;
  Expect(2, 11, {.random = uint64_t{1} << 32});  // The first draw is prefill-0, the second prefill-1.
  Expect(1, 11);                                 // Both draws are prefill-0.
}

TEST_F(PlacementTest, GoesToTheWorkerWhoseFirstTokenComesFirst) {
  TwoPlusTwo();
  MeasurePrefill(1, 1000);
  MeasurePrefill(2, 4000);
  Expect(2, 11);
  State(2).queued_prompt_tokens = 100;  // 140 tokens at 4000 a second are before 40 at 1000.
  Expect(2, 11);
  State(2).queued_prompt_tokens = 200;
  Expect(1, 11);
  ASSERT_OK_AND_ASSIGN(Placement placement, Run());
  EXPECT_EQ(placement.predicted_ttft, absl::Milliseconds(40));
  EXPECT_THAT(placement.reason, testing::HasSubstr("40ms to the first token (0 queued, 40 in the prompt, 0 cached, "
                                                   "at 1000 tokens/s)"));
  EXPECT_THAT(placement.reason,
              testing::ContainsRegex("; 0 running, [0-9]+ free pages, 0 cached on decode, link "
                                     "within rack of [0-9.]+ GB/s, KV [0-9.]+ ms behind the first token$"));
}

TEST_F(PlacementTest, OtherPoliciesLookAtRequestsOrAtNothing) {
  TwoPlusTwo();
  MeasurePrefill(1, 10000);
  MeasurePrefill(2, 100);
  Cache(1);
  State(1).running_requests = 2;
  State(2).running_requests = 1;
  State(12).running_requests = 1;
  Expect(1, 11);
  Expect(2, 11, {.policy = PlacementPolicy::kLeastLoad});
  Expect(1, 11, {.policy = PlacementPolicy::kRoundRobin, .turn = 4});
  Expect(2, 12, {.policy = PlacementPolicy::kRoundRobin, .turn = 5});
}

TEST_F(PlacementTest, WorkersNotYetMeasuredCountAsTheMeanOfTheOthers) {
  TwoPlusTwo();
  MeasurePrefill(1, 1000);
  State(1).queued_prompt_tokens = 10;
  Expect(2, 11);
}

TEST_F(PlacementTest, OnlyAQueueAtAMeasuredRateIsSureToMakeItWait) {
  TwoPlusTwo();
  const auto waits = [&] {
    PlacementRequest request;
    request.tokens = tokens_;
    return Place(view_, request)->is_sure_to_wait;
  };
  for (uint64_t id : {1, 2}) State(id).queued_prompt_tokens = 10;
  EXPECT_FALSE(waits());  // The rate is assumed.
  for (uint64_t id : {1, 2}) MeasurePrefill(id, 1000);
  EXPECT_TRUE(waits());
  for (uint64_t id : {1, 2}) State(id).queued_prompt_tokens = 0;
  EXPECT_FALSE(waits());
}

TEST_F(PlacementTest, WhatWaitsWithALowerPriorityOrIsDueLaterIsNotBeforeIt) {
  TwoPlusTwo();
  for (uint64_t id : {1, 2}) {
    MeasurePrefill(id, 1000);
    view_.Find(Incarnation(id))->AddPrefillTokens({.priority = 0, .due = kNow + absl::Seconds(9)}, 5'000);
    State(id).queued_prompt_tokens = 5'010;  // 10 of another router.
  }
  const auto predicted = [&](int priority, int due_seconds) {
    PlacementRequest request;
    request.tokens = tokens_;
    request.place = {priority, kNow + absl::Seconds(due_seconds)};
    return Place(view_, request)->predicted_ttft;
  };
  EXPECT_EQ(predicted(0, 9), absl::Milliseconds(5'050));
  EXPECT_EQ(predicted(0, 10), absl::Milliseconds(5'050));
  EXPECT_EQ(predicted(0, 8), absl::Milliseconds(50));
  EXPECT_EQ(predicted(1, 10), absl::Milliseconds(50));
  EXPECT_EQ(predicted(-1, 8), absl::Milliseconds(5'050));
  view_.Find(Incarnation(1))->AddPrefillTokens({.priority = 0, .due = kNow + absl::Seconds(9)}, -5'000);
  EXPECT_TRUE(view_.Find(Incarnation(1))->prefill_tokens_by_place.empty());
}

TEST_F(PlacementTest, WhatATokenCostsCountsForAsManyAsThereMayBe) {
  Add(11, Role::kDecode, "decode-0");
  Add(12, Role::kDecode, "decode-1");
  State(11).queued_prompt_tokens = 500;
  MeasurePrefill(11, 1000);  // The first token half a second later,
  MeasurePrefill(12, 1000);
  State(11).running_requests = 0;
  State(12).running_requests = 60;  // and each of the others, as is assumed, 18 ms sooner.
  const auto choose = [&](int max_output_tokens) {
    PlacementRequest request;
    request.tokens = tokens_;
    request.split = false;
    request.max_output_tokens = max_output_tokens;
    return Place(view_, request)->decode;
  };
  EXPECT_EQ(choose(5), Incarnation(12));
  EXPECT_EQ(choose(1'000), Incarnation(11));
}

TEST_F(PlacementTest, ASessionStaysWhereItIsWhileThatCostsLittle) {
  TwoPlusTwo();
  for (uint64_t id : {1, 2}) MeasurePrefill(id, 1000);
  const auto place = [&](uint64_t affinity) {
    PlacementRequest request;
    request.tokens = tokens_;
    request.affinity = affinity;
    request.random = DrawRandomId();
    return Place(view_, request)->prefill;
  };
  std::set<Incarnation> used;
  for (uint64_t session = 1; session < 20; ++session) {
    const Incarnation worker = place(session);
    used.insert(worker);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(place(session), worker);
    const uint64_t id = worker == Incarnation(1) ? 1 : 2;
    State(id).queued_prompt_tokens = 2;  // 42 tokens beside 40.
    EXPECT_EQ(place(session), worker);
    State(id).queued_prompt_tokens = 40;
    EXPECT_NE(place(session), worker);
    State(id).queued_prompt_tokens = 0;
  }
  EXPECT_EQ(used.size(), 2);  // Sessions are spread.
}

TEST_F(PlacementTest, DecodeGoesWhereATokenTakesLess) {
  TwoPlusTwo();
  MeasureDecode(11, absl::Milliseconds(20));
  MeasureDecode(12, absl::Milliseconds(10));
  State(12).running_requests = 20;  // 10 ms / 33 x (21 + 32) is still less than 20 ms.
  Expect(1, 12);
  State(12).running_requests = 60;
  Expect(1, 11);
}

TEST_F(PlacementTest, SaysWhereOthersRunThatWereMeasured) {
  TwoPlusTwo();
  const auto is_sure = [&] { return Run()->is_sure_to_share; };
  EXPECT_FALSE(is_sure());
  for (uint64_t id : {11, 12}) State(id).running_requests = 1;
  EXPECT_FALSE(is_sure());
  for (uint64_t id : {11, 12}) MeasureDecode(id, absl::Milliseconds(20));
  EXPECT_TRUE(is_sure());
  for (uint64_t id : {11, 12}) {
    State(id).waiting_requests = 50;
    State(id).free_pages = 0;
  }
  EXPECT_EQ(Run()->predicted_tpot, view_.Find(Incarnation(11))->speed.TimePerToken(2)) << "what waits is no batch";
  for (uint64_t id : {11, 12}) State(id).running_requests = 0;
  EXPECT_FALSE(is_sure());
}

TEST_F(PlacementTest, AFasterLinkIsWorthARequestMore) {
  TwoPlusTwo();
  for (uint64_t id : {11, 12}) view_.Find(Incarnation(id))->registration.page_bytes = 1 << 20;
  State(1).links[0].gigabytes_per_second = 0.01;  // 11 MB take a second.
  State(1).links[1].gigabytes_per_second = 10;
  State(12).running_requests = 1;
  Expect(1, 12);
  State(1).links[0].gigabytes_per_second = 10;
  Expect(1, 11);
}

TEST_F(PlacementTest, OfEqualsThoseInTheDomainOfPrefillAreTaken) {
  TwoPlusTwo();
  view_.Find(Incarnation(2))->registration.domain = "far";
  view_.Find(Incarnation(12))->registration.domain = "far";
  for (uint64_t random : {0ull, 1ull, 1ull << 32, 1ull + (1ull << 32)}) {
    for (uint64_t affinity : {0, 5, 6, 7}) {
      ASSERT_OK_AND_ASSIGN(Placement placement, Run({.affinity = affinity, .random = random}));
      EXPECT_EQ(placement.prefill.value() == 2, placement.decode.value() == 12) << random << " " << affinity;
    }
  }
  State(11).running_requests = 10;  // Its tokens take longer than a link between domains costs.
  ASSERT_OK_AND_ASSIGN(Placement placement, Run());
  EXPECT_EQ(placement.prefill, Incarnation(1));
  EXPECT_EQ(placement.decode, Incarnation(12));
  EXPECT_THAT(placement.reason, testing::HasSubstr("link to far of "));
}

TEST_F(PlacementTest, ALinkThatWasNotMeasuredIsAsFastAsOthersOfItsKind) {
  TwoPlusTwo();
  Add(13, Role::kDecode, "decode-2");
  for (uint64_t id : {11, 12, 13}) view_.Find(Incarnation(id))->registration.page_bytes = 1 << 20;
  view_.Find(Incarnation(12))->registration.domain = view_.Find(Incarnation(13))->registration.domain = "far";
  State(1).links = {{.peer = Incarnation(11), .up = true, .gigabytes_per_second = 10},
                    {.peer = Incarnation(12), .up = true, .gigabytes_per_second = 0.01},
                    {.peer = Incarnation(13), .up = true}};
  State(11).running_requests = 20;
  Expect(1, 11);  // 11 MB to another domain take a second, by the one link that was measured.
  State(1).links[1].gigabytes_per_second = 10;
  State(12).running_requests = 20;
  Expect(1, 13);
}

TEST_F(PlacementTest, ShortPromptsRunOnDecodeWhenThatIsClearlySooner) {
  TwoPlusTwo();
  for (uint64_t id : {1, 2}) MeasurePrefill(id, 1000);
  const PlacementRequest allowed{.conditional_prefill_tokens = 64};
  Expect(1, 11, allowed);  // Both would take 40 ms.
  for (uint64_t id : {1, 2}) State(id).queued_prompt_tokens = 500;
  Expect(0, 11, allowed);
  Expect(1, 11);                                      // It is off.
  Expect(1, 11, {.conditional_prefill_tokens = 39});  // The prompt is too long for it.
  Cache(12);
  Expect(0, 12, {.conditional_prefill_tokens = 39});  // But for who has it cached.
  State(11).queued_prompt_tokens = State(12).queued_prompt_tokens = 500;
  Expect(1, 11, allowed);
  Expect(1, 11, {.fixed_prefill = Incarnation(1), .conditional_prefill_tokens = 64});
}

TEST_F(PlacementTest, AnAggregatedClusterWeighsFirstTokenAndOthers) {
  Add(11, Role::kDecode, "decode-0");
  Add(12, Role::kDecode, "decode-1");
  for (uint64_t id : {11, 12}) {
    MeasurePrefill(id, 1000);
    MeasureDecode(id, absl::Milliseconds(10));
  }
  State(11).queued_prompt_tokens = 100;
  Expect(0, 12, {.split = false});
  State(12).running_requests = 30;  // 64 tokens at 9 ms more each are worth more than 100 ms.
  Expect(0, 11, {.split = false});
}

TEST_F(PlacementTest, AvoidsQueuedPrompts) {
  TwoPlusTwo();
  State(1).queued_prompt_tokens = 500;
  Expect(2, 11);
}

TEST_F(PlacementTest, CountsItsOwnRequestsBeforeTheHeartbeatDoes) {
  TwoPlusTwo();
  view_.Find(Incarnation(1))->prefill_tokens = 500;
  view_.Find(Incarnation(11))->legs = 3;
  Expect(2, 12);
}

TEST_F(PlacementTest, GoesWhereThePrefixIs) {
  TwoPlusTwo();
  Cache(2);
  ASSERT_OK_AND_ASSIGN(Placement placement, Run());
  EXPECT_EQ(placement.prefill, Incarnation(2));
  EXPECT_EQ(placement.prefill_hit_tokens, 39);  // The last token is always computed.
  State(2).queued_prompt_tokens = 100;          // A long queue is worth more than the prefix.
  Expect(1, 11);
}

TEST_F(PlacementTest, AvoidsDecodeWorkersWithoutPages) {
  TwoPlusTwo();
  State(11).free_pages = 2;
  State(12).running_requests = 5;
  Expect(1, 12);
}

TEST_F(PlacementTest, UsesLinkedPairsOnly) {
  Add(11, Role::kDecode, "decode-0");
  Add(12, Role::kDecode, "decode-1");
  Add(1, Role::kPrefill, "prefill-0");
  Add(2, Role::kPrefill, "prefill-1", {12});
  Expect(2, 12);
}

TEST_F(PlacementTest, ALinkThatWasFoundDownIsUsedAgainWhenAHeartbeatSaysSo) {
  Add(11, Role::kDecode, "decode-0");
  Add(1, Role::kPrefill, "prefill-0", {11});
  Expect(1, 11);
  view_.SetLinkDown(Incarnation(1), Incarnation(11));
  EXPECT_EQ(GetErrorReason(Run().status()), ErrorReason::kLinkDown);
  WorkerHeartbeat heartbeat = State(1);
  heartbeat.links[0].up = true;
  ++heartbeat.sequence;
  view_.OnHeartbeat(Incarnation(1), heartbeat, kNow);
  Expect(1, 11);
}

TEST_F(PlacementTest, LeavesOutWorkersThatDoNotAcceptWork) {
  TwoPlusTwo();
  State(1).state = "draining";
  State(11).state = "degraded";
  Expect(2, 12);
  view_.SetSessionUp(Incarnation(2), false);
  EXPECT_EQ(GetErrorReason(Run().status()), ErrorReason::kLinkDown);
}

TEST_F(PlacementTest, AvoidsThoseThatFailedUnlessThereIsNoOther) {
  TwoPlusTwo();
  Expect(2, 11, {.avoid = {Incarnation(1)}});
  Expect(1, 12, {.avoid = {Incarnation(11)}});
  Expect(1, 11, {.avoid = {Incarnation(1), Incarnation(2)}});
}

TEST_F(PlacementTest, KeepsAFixedPrefillEvenWhenItDrains) {
  TwoPlusTwo();
  State(2).state = "draining";
  Expect(2, 11, {.fixed_prefill = Incarnation(2)});
}

TEST_F(PlacementTest, WithoutPrefillPoolsDecodeDoesBoth) {
  Add(11, Role::kDecode, "decode-0");
  Expect(0, 11, {.split = false});
  EXPECT_EQ(GetErrorReason(Run().status()), ErrorReason::kWorkerLost);  // With one it does not.
}

TEST_F(PlacementTest, SaysWhatIsMissing) {
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("no decode worker")));
  TwoPlusTwo();
  tokens_.resize(1000);
  EXPECT_EQ(GetErrorReason(Run().status()), ErrorReason::kRequestTooLong);
}

TEST_F(PlacementTest, ViewIsReadyOnlyWithALinkedPair) {
  EXPECT_FALSE(view_.Ready(true));
  Add(11, Role::kDecode, "decode-0");
  EXPECT_TRUE(view_.Ready(/*split=*/false));
  EXPECT_FALSE(view_.Ready(/*split=*/true));  // Its prefill worker has not registered yet.
  Add(1, Role::kPrefill, "prefill-0");
  EXPECT_FALSE(view_.Ready(true));
  Add(2, Role::kPrefill, "prefill-1", {11});
  EXPECT_TRUE(view_.Ready(true));
}

TEST_F(PlacementTest, ANewLifeReplacesTheOldOne) {
  TwoPlusTwo();
  WorkerRegistration again = view_.Find(Incarnation(1))->registration;
  again.incarnation = Incarnation(99);
  EXPECT_EQ(view_.Register(again, kNow), Incarnation(1));
}

TEST_F(PlacementTest, SilentAndStuckWorkersAreLost) {
  TwoPlusTwo();
  EXPECT_THAT(view_.Lost(kNow + absl::Seconds(1), absl::Seconds(1), absl::Seconds(5)), IsEmpty());
  for (int second = 1; second <= 7; ++second) {
    for (uint64_t id : {1, 2, 11, 12}) {
      WorkerHeartbeat heartbeat = State(id);
      heartbeat.running_requests = 1;
      if (id != 11) heartbeat.turns = second;
      ++heartbeat.sequence;
      view_.OnHeartbeat(Incarnation(id), heartbeat, kNow + absl::Seconds(second));
    }
  }
  EXPECT_THAT(view_.Lost(kNow + absl::Seconds(7), absl::Seconds(1), absl::Seconds(5)), ElementsAre(Incarnation(11)));
  EXPECT_THAT(view_.Lost(kNow + absl::Seconds(9), absl::Seconds(1), absl::Seconds(50)),
              UnorderedElementsAre(Incarnation(1), Incarnation(2), Incarnation(11), Incarnation(12)));
}

TEST_F(PlacementTest, AWorkerThatStoodStillGetsNoWorkUntilItMakesATurn) {
  Add(1, Role::kDecode, "decode-0");
  const auto hear = [&](int64_t turns, int64_t sequence) {
    WorkerHeartbeat heartbeat = State(1);
    heartbeat.turns = turns;
    heartbeat.sequence = sequence;
    view_.OnHeartbeat(Incarnation(1), heartbeat, kNow + absl::Seconds(6));
  };
  const WorkerRegistration registration = view_.Find(Incarnation(1))->registration;
  hear(7, 5);
  EXPECT_TRUE(view_.Find(Incarnation(1))->AcceptsWork());
  EXPECT_THAT(view_.Lost(kNow + absl::Seconds(12), absl::Seconds(10), absl::Seconds(5)), ElementsAre(Incarnation(1)));
  view_.Remove(Incarnation(1));
  view_.Register(registration, kNow + absl::Seconds(12));
  view_.SetSessionUp(Incarnation(1), true);
  hear(7, 1);
  EXPECT_FALSE(view_.Find(Incarnation(1))->AcceptsWork());
  hear(8, 2);
  EXPECT_TRUE(view_.Find(Incarnation(1))->AcceptsWork());
  // One that was silent only is taken as it comes.
  EXPECT_THAT(view_.Lost(kNow + absl::Seconds(30), absl::Seconds(10), absl::Seconds(50)), ElementsAre(Incarnation(1)));
  view_.Remove(Incarnation(1));
  view_.Register(registration, kNow + absl::Seconds(31));
  view_.SetSessionUp(Incarnation(1), true);
  hear(8, 1);
  EXPECT_TRUE(view_.Find(Incarnation(1))->AcceptsWork());
}

TEST_F(PlacementTest, AGapInHeartbeatsForgetsThePrefixesUntilAllAreTold) {
  Add(1, Role::kPrefill, "prefill-0");
  view_.OnHeartbeat(Incarnation(1), {.stored_hashes = {5, 6}, .sequence = 2}, kNow);
  view_.OnHeartbeat(Incarnation(1), {.dropped_hashes = {5}, .sequence = 3}, kNow);
  EXPECT_EQ(view_.Find(Incarnation(1))->prefix_hashes.size(), 1);
  EXPECT_FALSE(view_.OnHeartbeat(Incarnation(1), {.sequence = 5}, kNow));
  EXPECT_THAT(view_.Find(Incarnation(1))->prefix_hashes, IsEmpty());
  EXPECT_TRUE(view_.OnHeartbeat(Incarnation(1), {.stored_hashes = {6, 7}, .sequence = 1}, kNow));
  EXPECT_TRUE(view_.OnHeartbeat(Incarnation(1), {.stored_hashes = {8}, .sequence = 2}, kNow));
  EXPECT_THAT(view_.Find(Incarnation(1))->prefix_hashes, UnorderedElementsAre(6, 7, 8));
}

TEST_F(PlacementTest, PrefixesAreCountedUpToTheFirstPageThatIsMissing) {
  TwoPlusTwo();
  const std::vector<uint64_t> hashes = ChainedPageHashes(tokens_, 4);
  view_.OnHeartbeat(Incarnation(1), {.stored_hashes = {hashes[0], hashes[1], hashes[3]}, .sequence = 2}, kNow);
  view_.OnHeartbeat(Incarnation(2), {.stored_hashes = {hashes[1]}, .sequence = 2}, kNow);
  view_.OnHeartbeat(Incarnation(11), {.stored_hashes = hashes, .sequence = 2}, kNow);
  EXPECT_THAT(view_.PrefixHits(tokens_),
              UnorderedElementsAre(testing::Pair(Incarnation(1), 8), testing::Pair(Incarnation(11), 40)));
  view_.Remove(Incarnation(11));
  EXPECT_THAT(view_.PrefixHits(tokens_), ElementsAre(testing::Pair(Incarnation(1), 8)));
}

}  // namespace
}  // namespace tandem
