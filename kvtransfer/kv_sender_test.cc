#include "kvtransfer/kv_sender.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr HandoverId kSent(7);

class KvSenderTest : public testing::Test {
 protected:
  KvSenderTest() : pool_(layout_.pool_bytes()), sender_(layout_, layout_, /*checksums=*/true, pool_.data()) {}

  void StartWithTokens(int count) {
    std::vector<PageIndex> pages((count + 3) / 4);
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<PageIndex>(i);
    sender_.Start(kSent, std::vector<TokenId>(count, 1), pages);
  }
  void Grant(std::vector<PageIndex> pages, int first_missing = 0, uint64_t epoch = 3) {
    sender_.OnGrant({kSent, TransferEpoch(epoch), std::move(pages), first_missing}, kNow);
  }
  std::vector<PushOrder> Pushes() {
    absl::StatusOr<std::vector<PushOrder>> pushes = sender_.TakePushes(1 << 30);
    EXPECT_THAT(pushes, IsOk());
    return pushes.ok() ? *std::move(pushes) : std::vector<PushOrder>();
  }
  template <typename T>
  std::vector<T> Messages() {
    std::vector<T> found;
    for (const LinkMessage& message : sender_.TakeMessages()) {
      if (const T* match = std::get_if<T>(&message)) found.push_back(*match);
    }
    return found;
  }

  KvLayout layout_ = {.num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .page_tokens = 4, .num_pages = 8};
  std::vector<uint8_t> pool_;
  KvSender sender_;
};

TEST_F(KvSenderTest, CommitsAfterTheLastPushIsFlushed) {
  StartWithTokens(6);
  EXPECT_THAT(Messages<OfferMessage>(), SizeIs(1));
  Grant({4, 5});
  sender_.LayersReady(kSent, {0, 6}, {0, 2}, kNow);
  sender_.Finish(kSent, 42);
  EXPECT_THAT(Pushes(), SizeIs(1));
  EXPECT_TRUE(sender_.WantsFlush());
  EXPECT_THAT(Messages<CommitMessage>(), IsEmpty());
  sender_.OnFlushed();
  std::vector<CommitMessage> commits = Messages<CommitMessage>();
  ASSERT_THAT(commits, SizeIs(1));
  EXPECT_EQ(commits[0].first_token, 42);
  EXPECT_EQ(commits[0].pages_written, 2);
  EXPECT_THAT(commits[0].page_checksums, SizeIs(2));
  EXPECT_THAT(sender_.TakeOutcomes(), IsEmpty());
  sender_.OnAck({kSent, TransferEpoch(3)}, kNow + absl::Milliseconds(5));
  std::vector<HandoverOutcome> outcomes = sender_.TakeOutcomes();
  ASSERT_THAT(outcomes, SizeIs(1));
  EXPECT_EQ(outcomes[0].kind, HandoverOutcome::Kind::kAcked);
  EXPECT_EQ(outcomes[0].transfer_time, absl::Milliseconds(5));
  EXPECT_EQ(sender_.num_active(), 0);
}

TEST_F(KvSenderTest, PushesWhatWasReadyBeforeTheGrant) {
  StartWithTokens(8);
  sender_.LayersReady(kSent, {0, 8}, {0, 1}, kNow);
  EXPECT_THAT(Pushes(), IsEmpty());
  Grant({1, 2});
  EXPECT_THAT(Pushes(), SizeIs(1));
  sender_.LayersReady(kSent, {0, 8}, {1, 2}, kNow);
  EXPECT_THAT(Pushes(), SizeIs(1));
}

class FakeEvent final : public SourceEvent {
 public:
  absl::StatusOr<bool> PollReady() const override { return state; }
  absl::StatusOr<bool> state = false;
};

TEST_F(KvSenderTest, APushWaitsForItsSource) {
  auto event = std::make_shared<FakeEvent>();
  StartWithTokens(8);
  Grant({1, 2});
  sender_.LayersReady(kSent, {0, 8}, {0, 1}, kNow, event);
  sender_.LayersReady(kSent, {0, 8}, {1, 2}, kNow);
  EXPECT_THAT(Pushes(), IsEmpty());  // In order: the second waits for the first.
  EXPECT_TRUE(sender_.HasPushes());
  event->state = true;
  EXPECT_THAT(Pushes(), SizeIs(2));
  StartWithTokens(4);
  Grant({3}, 0, 4);
  sender_.LayersReady(kSent, {0, 4}, {0, 1}, kNow, event);
  event->state = absl::InternalError("device lost");
  EXPECT_THAT(sender_.TakePushes(1 << 30), StatusIs(absl::StatusCode::kInternal));
}

// A flush covers all that was taken: one that waits for what is still computed would hold the commits of what is not.
TEST_F(KvSenderTest, ACommitDoesNotWaitForTheSourceOfALaterHandover) {
  StartWithTokens(4);
  Grant({1});
  sender_.LayersReady(kSent, {0, 4}, {0, 2}, kNow);
  const HandoverId later(77);
  auto event = std::make_shared<FakeEvent>();
  sender_.Start(later, std::vector<TokenId>(4, 1), {5});
  sender_.OnGrant({later, TransferEpoch(9), {2}, 0}, kNow);
  sender_.LayersReady(later, {0, 4}, {0, 2}, kNow, event);
  EXPECT_THAT(Pushes(), SizeIs(1));
  sender_.Finish(kSent, 3);
  EXPECT_TRUE(sender_.WantsFlush());
  sender_.OnFlushed();
  EXPECT_THAT(Messages<CommitMessage>(), SizeIs(1));
}

TEST_F(KvSenderTest, ACommitCarriesTheSumsOfItsPushes) {
  StartWithTokens(6);
  Grant({4, 5});
  sender_.LayersReady(kSent, {0, 6}, {0, 2}, kNow);
  std::vector<PushOrder> pushes = Pushes();
  ASSERT_THAT(pushes, SizeIs(1));
  ASSERT_NE(pushes[0].write.sums, nullptr);
  ASSERT_EQ(pushes[0].write.page_of_run.size(), pushes[0].write.runs.size());
  *pushes[0].write.sums = {11, 12};
  sender_.Finish(kSent, 1);
  sender_.OnFlushed();
  const std::vector<CommitMessage> commits = Messages<CommitMessage>();
  ASSERT_THAT(commits, SizeIs(1));
  EXPECT_THAT(commits[0].page_checksums, ElementsAre(FoldSum(11), FoldSum(12)));
}

TEST_F(KvSenderTest, SkipsPagesThatDecodeHolds) {
  StartWithTokens(8);
  Grant({6}, /*first_missing=*/1);
  sender_.LayersReady(kSent, {0, 8}, {0, 2}, kNow);
  std::vector<PushOrder> pushes = Pushes();
  ASSERT_THAT(pushes, SizeIs(1));
  int64_t bytes = 0;
  for (const CopyRun& run : pushes[0].write.runs) bytes += run.bytes;
  EXPECT_EQ(bytes, layout_.page_bytes());
}

TEST_F(KvSenderTest, CommitsWithoutAPushWhenDecodeHoldsEverything) {
  StartWithTokens(8);
  Grant({}, /*first_missing=*/2);
  sender_.LayersReady(kSent, {0, 8}, {0, 2}, kNow);
  sender_.Finish(kSent, 1);
  EXPECT_THAT(Pushes(), IsEmpty());
  EXPECT_THAT(Messages<CommitMessage>(), SizeIs(1));
}

TEST_F(KvSenderTest, RefusesAGrantThatDoesNotFit) {
  StartWithTokens(6);
  Messages<OfferMessage>();
  Grant({1});  // Two pages are needed.
  EXPECT_THAT(Messages<AbortMessage>(), SizeIs(1));
  ASSERT_THAT(sender_.TakeOutcomes(), SizeIs(1));
  StartWithTokens(6);
  Grant({1, 99});  // The pool has eight.
  EXPECT_THAT(Messages<AbortMessage>(), SizeIs(1));
}

TEST_F(KvSenderTest, CancelWaitsForWritesInFlight) {
  StartWithTokens(4);
  Grant({0});
  sender_.LayersReady(kSent, {0, 4}, {0, 2}, kNow);
  EXPECT_THAT(Pushes(), SizeIs(1));
  sender_.Cancel(kSent, "client gone");
  EXPECT_TRUE(sender_.WantsFlush());
  EXPECT_THAT(sender_.TakeOutcomes(), IsEmpty());
  EXPECT_THAT(Messages<AbortMessage>(), IsEmpty());
  sender_.OnFlushed();
  EXPECT_THAT(Messages<AbortMessage>(), SizeIs(1));
  EXPECT_THAT(sender_.TakeOutcomes(), SizeIs(1));
}

TEST_F(KvSenderTest, AnswersAbortOfThePeerWhenNothingIsInFlight) {
  StartWithTokens(4);
  Grant({0});
  sender_.LayersReady(kSent, {0, 4}, {0, 1}, kNow);
  Pushes();
  sender_.OnAbort({kSent, TransferEpoch(3), "cancelled"});
  EXPECT_THAT(Messages<AbortDoneMessage>(), IsEmpty());
  sender_.OnFlushed();
  EXPECT_THAT(Messages<AbortDoneMessage>(), SizeIs(1));
}

TEST_F(KvSenderTest, AnswersAbortOfAnUnknownHandover) {
  sender_.OnAbort({HandoverId(99), TransferEpoch(1), "late"});
  EXPECT_THAT(Messages<AbortDoneMessage>(), SizeIs(1));
}

TEST_F(KvSenderTest, IgnoresAndCountsStaleMessages) {
  StartWithTokens(4);
  Grant({0});
  Grant({1}, 0, 4);                                // A second grant.
  sender_.OnAck({kSent, TransferEpoch(3)}, kNow);  // Before Commit.
  sender_.OnAck({kSent, TransferEpoch(2)}, kNow);  // Of another epoch.
  sender_.OnRefuse({HandoverId(99), ""});
  EXPECT_EQ(sender_.TakeIgnoredMessages(), 4);
  EXPECT_THAT(sender_.TakeOutcomes(), IsEmpty());
}

TEST_F(KvSenderTest, LosesAllWithTheLink) {
  StartWithTokens(4);
  sender_.LoseAll("peer died");
  std::vector<HandoverOutcome> outcomes = sender_.TakeOutcomes();
  ASSERT_THAT(outcomes, SizeIs(1));
  EXPECT_EQ(outcomes[0].kind, HandoverOutcome::Kind::kLost);
  EXPECT_EQ(outcomes[0].error_reason, ErrorReason::kLinkDown);
}

TEST_F(KvSenderTest, ReportsARefusal) {
  StartWithTokens(4);
  sender_.OnRefuse({kSent, "too few KV pages"});
  std::vector<HandoverOutcome> outcomes = sender_.TakeOutcomes();
  ASSERT_THAT(outcomes, SizeIs(1));
  EXPECT_EQ(outcomes[0].kind, HandoverOutcome::Kind::kRefused);
  EXPECT_EQ(outcomes[0].reason, "too few KV pages");
}

}  // namespace
}  // namespace tandem
