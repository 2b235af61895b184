#include "router/placement.h"

#include <string>
#include <vector>

#include "common/error_reason.h"
#include "common/page_hash.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr absl::Time kNow = absl::UnixEpoch();

class PlacementTest : public testing::Test {
 protected:
  void Add(uint64_t id, Role role, const std::string& name, std::vector<uint64_t> links = {}) {
    WorkerRegistration registration{.worker_id = name,
                                    .incarnation = Incarnation(id),
                                    .role = role,
                                    .link_address = name,
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

TEST_F(PlacementTest, TiesGoToTheLowerName) {
  TwoPlusTwo();
  Expect(1, 11);
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
  for (uint64_t hash : ChainedPageHashes(tokens_, 4)) view_.Find(Incarnation(2))->prefix_hashes.insert(hash);
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

TEST_F(PlacementTest, AGapInHeartbeatsForgetsThePrefixes) {
  Add(1, Role::kPrefill, "prefill-0");
  view_.OnHeartbeat(Incarnation(1), {.stored_hashes = {5, 6}, .sequence = 2}, kNow);
  view_.OnHeartbeat(Incarnation(1), {.dropped_hashes = {5}, .sequence = 3}, kNow);
  EXPECT_EQ(view_.Find(Incarnation(1))->prefix_hashes.size(), 1);
  view_.OnHeartbeat(Incarnation(1), {.sequence = 5}, kNow);
  EXPECT_THAT(view_.Find(Incarnation(1))->prefix_hashes, IsEmpty());
}

}  // namespace
}  // namespace tandem
