#include "kvtransfer/kv_receiver.h"

#include <map>
#include <vector>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Incarnation kPeer(1), kOtherPeer(2);
constexpr HandoverId kHandover(7);

// A pool that only counts.
class FakePages final : public HandoverPages {
 public:
  explicit FakePages(int count) {
    for (int page = count - 1; page >= 0; --page) free_.push_back(page);
  }
  bool HasRoom(int granted) const override { return granted < room; }
  std::vector<PageIndex> AcquireHeld(absl::Span<const TokenId>) override { return held; }
  std::optional<std::vector<PageIndex>> AllocateGranted(int count) override {
    if (count > free_.size()) return std::nullopt;
    std::vector<PageIndex> pages(free_.end() - count, free_.end());
    free_.resize(free_.size() - count);
    return pages;
  }
  void MarkCommitted(absl::Span<const PageIndex>) override {}
  void Quarantine(absl::Span<const PageIndex> pages) override { quarantined += static_cast<int>(pages.size()); }
  void Free(absl::Span<const PageIndex> pages) override {
    for (PageIndex page : pages) {
      if (std::find(held.begin(), held.end(), page) == held.end()) free_.push_back(page);
    }
  }
  int num_free() const { return static_cast<int>(free_.size()); }
  std::vector<PageIndex> held;
  int quarantined = 0;  // Ever.
  int room = 100;

 private:
  std::vector<PageIndex> free_;
};

class KvReceiverTest : public testing::Test {
 protected:
  KvReceiverTest() : pool_(layout_.pool_bytes()), receiver_({}, layout_, pool_.data(), pages_) {
    receiver_.OnPeerUp(kPeer, "prefill-0", layout_, /*checksums=*/false);
    receiver_.OnPeerUp(kOtherPeer, "prefill-1", layout_, /*checksums=*/true);
  }
  OfferMessage Offer(int tokens, HandoverId handover = kHandover) {
    return {handover, std::vector<TokenId>(tokens, 1)};
  }
  template <typename T>
  std::vector<T> Messages() {
    std::vector<T> found;
    for (const auto& [peer, message] : receiver_.TakeMessages()) {
      if (const T* match = std::get_if<T>(&message)) found.push_back(*match);
    }
    return found;
  }
  GrantMessage GrantFor(int tokens, Incarnation peer = kPeer) {
    receiver_.Expect(kHandover, Offer(tokens).tokens);
    receiver_.OnOffer(peer, Offer(tokens), kNow);
    std::vector<GrantMessage> grants = Messages<GrantMessage>();
    EXPECT_THAT(grants, SizeIs(1));
    return grants.empty() ? GrantMessage() : grants[0];
  }

  KvLayout layout_ = {.num_layers = 2, .num_kv_heads = 1, .head_dim = 4, .page_tokens = 4, .num_pages = 8};
  std::vector<uint8_t> pool_;
  FakePages pages_{8};
  KvReceiver receiver_;
};

TEST_F(KvReceiverTest, GrantsCommitsAndAcks) {
  GrantMessage grant = GrantFor(6);
  EXPECT_THAT(grant.pages, SizeIs(2));
  EXPECT_EQ(pages_.num_free(), 6);
  ASSERT_OK_AND_ASSIGN(auto received, receiver_.OnCommit(kPeer, {kHandover, grant.epoch, 2, {}, 42}));
  ASSERT_TRUE(received.has_value());
  EXPECT_EQ(received->pages, grant.pages);
  EXPECT_EQ(received->first_token, 42);
  EXPECT_THAT(Messages<AckMessage>(), SizeIs(1));
}

TEST_F(KvReceiverTest, BindsNoPagesBeforeTheDecodeLegWasStarted) {
  receiver_.OnOffer(kPeer, Offer(6), kNow);
  EXPECT_EQ(pages_.num_free(), 8);
  EXPECT_THAT(Messages<GrantMessage>(), IsEmpty());
  receiver_.Expect(kHandover, Offer(6).tokens);
  receiver_.RetryWaiting(kNow);
  EXPECT_THAT(Messages<GrantMessage>(), SizeIs(1));
}

TEST_F(KvReceiverTest, RefusesAnOfferThatWaitedTooLong) {
  receiver_.OnOffer(kPeer, Offer(6), kNow);
  receiver_.RetryWaiting(kNow + absl::Seconds(4));
  EXPECT_THAT(Messages<RefuseMessage>(), IsEmpty());
  receiver_.RetryWaiting(kNow + absl::Seconds(5));
  std::vector<RefuseMessage> refusals = Messages<RefuseMessage>();
  ASSERT_THAT(refusals, SizeIs(1));
  EXPECT_EQ(refusals[0].error_reason, ErrorReason::kUnknown);
}

TEST_F(KvReceiverTest, WaitsForPagesInOrderOfArrival) {
  GrantMessage first = GrantFor(28);  // 7 of 8 pages.
  receiver_.Expect(HandoverId(8), Offer(8).tokens);
  receiver_.Expect(HandoverId(9), Offer(4).tokens);
  receiver_.OnOffer(kPeer, Offer(8, HandoverId(8)), kNow);
  receiver_.OnOffer(kPeer, Offer(4, HandoverId(9)), kNow);  // Would fit, but must not overtake.
  EXPECT_THAT(Messages<GrantMessage>(), IsEmpty());
  receiver_.OnAbort(kPeer, {kHandover, first.epoch, ""});
  receiver_.RetryWaiting(kNow);
  EXPECT_THAT(Messages<GrantMessage>(), SizeIs(2));
}

TEST_F(KvReceiverTest, RefusesWhatNeverFits) {
  receiver_.Expect(kHandover, Offer(100).tokens);
  receiver_.OnOffer(kPeer, Offer(100), kNow);
  std::vector<RefuseMessage> refusals = Messages<RefuseMessage>();
  ASSERT_THAT(refusals, SizeIs(1));
  EXPECT_EQ(refusals[0].error_reason, ErrorReason::kRequestTooLong);
}

TEST_F(KvReceiverTest, NamesOnlyPagesItDoesNotHold) {
  pages_.held = {100, 101};
  GrantMessage grant = GrantFor(12);
  EXPECT_EQ(grant.first_missing_page, 2);
  EXPECT_THAT(grant.pages, SizeIs(1));
  ASSERT_OK_AND_ASSIGN(auto received, receiver_.OnCommit(kPeer, {kHandover, grant.epoch, 1, {}, 0}));
  EXPECT_THAT(received->pages, ElementsAre(100, 101, grant.pages[0]));
}

TEST_F(KvReceiverTest, QuarantinesPagesOfACancelledGrantUntilAbortDone) {
  GrantMessage grant = GrantFor(8);
  receiver_.Cancel(kHandover, "client gone");
  EXPECT_THAT(Messages<AbortMessage>(), SizeIs(1));
  EXPECT_EQ(pages_.quarantined, 2);
  EXPECT_EQ(pages_.num_free(), 6);
  // A Commit that crossed the Abort changes nothing.
  ASSERT_OK_AND_ASSIGN(auto received, receiver_.OnCommit(kPeer, {kHandover, grant.epoch, 2, {}, 0}));
  EXPECT_FALSE(received.has_value());
  receiver_.OnAbortDone(kPeer, {kHandover, TransferEpoch(grant.epoch.value() + 1)});  // Another epoch's.
  EXPECT_EQ(pages_.num_free(), 6);
  receiver_.OnAbortDone(kPeer, {kHandover, grant.epoch});
  EXPECT_EQ(pages_.num_free(), 8);
}

TEST_F(KvReceiverTest, KeepsPagesOfALostPeerUntilItIsDead) {
  GrantFor(8);
  EXPECT_THAT(receiver_.OnPeerLost(kPeer, /*writes_over=*/false), ElementsAre(kHandover));
  EXPECT_TRUE(receiver_.IsFenced(kPeer));
  EXPECT_EQ(pages_.num_free(), 6);
  receiver_.OnWritesOver(kPeer);
  EXPECT_FALSE(receiver_.IsFenced(kPeer));
  EXPECT_EQ(pages_.num_free(), 8);
}

TEST_F(KvReceiverTest, FreesPagesOfADeadPeerAtOnce) {
  GrantFor(8);
  receiver_.OnPeerLost(kPeer, /*writes_over=*/true);
  EXPECT_EQ(pages_.num_free(), 8);
  EXPECT_FALSE(receiver_.IsFenced(kPeer));
}

TEST_F(KvReceiverTest, KeepsAbortingPagesInQuarantineWhenThePeerIsLost) {
  GrantFor(8);
  receiver_.Cancel(kHandover, "");
  receiver_.OnPeerLost(kPeer, /*writes_over=*/false);
  EXPECT_EQ(pages_.num_free(), 6);
  receiver_.OnWritesOver(kPeer);
  EXPECT_EQ(pages_.num_free(), 8);
}

TEST_F(KvReceiverTest, DoesNotFenceAPeerWithoutPages) {
  receiver_.OnPeerLost(kPeer, /*writes_over=*/false);
  EXPECT_FALSE(receiver_.IsFenced(kPeer));
}

TEST_F(KvReceiverTest, IgnoresAndCountsStaleMessages) {
  GrantMessage grant = GrantFor(4);
  const TransferEpoch old_epoch(grant.epoch.value() + 100);
  ASSERT_OK_AND_ASSIGN(auto none, receiver_.OnCommit(kPeer, {kHandover, old_epoch, 1, {}, 0}));
  EXPECT_FALSE(none.has_value());
  ASSERT_OK_AND_ASSIGN(none, receiver_.OnCommit(kOtherPeer, {kHandover, grant.epoch, 1, {}, 0}));
  EXPECT_FALSE(none.has_value());
  receiver_.OnOffer(kPeer, Offer(4), kNow);  // A duplicate.
  receiver_.OnAbort(kPeer, {HandoverId(99), TransferEpoch(), ""});
  EXPECT_EQ(receiver_.counters().ignored_messages, 4);
  EXPECT_EQ(pages_.num_free(), 7);  // Still granted.
}

TEST_F(KvReceiverTest, RefusesDamagedKvAndKeepsItsPagesUntilTheSenderStopped) {
  GrantMessage grant = GrantFor(4, kOtherPeer);
  auto result = receiver_.OnCommit(kOtherPeer, {kHandover, grant.epoch, 1, {0xBAD}, 0});
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(GetErrorReason(result.status()), ErrorReason::kChecksumMismatch);
  EXPECT_EQ(receiver_.counters().checksum_failures, 1);
  EXPECT_THAT(Messages<AbortMessage>(), SizeIs(1));
  EXPECT_EQ(pages_.num_free(), 7);
  receiver_.OnAbortDone(kOtherPeer, {kHandover, grant.epoch});
  EXPECT_EQ(pages_.num_free(), 8);
}

TEST_F(KvReceiverTest, NeverReusesAnEpoch) {
  std::vector<TransferEpoch> epochs;
  for (int i = 0; i < 3; ++i) {
    GrantMessage grant = GrantFor(4);
    epochs.push_back(grant.epoch);
    receiver_.OnAbort(kPeer, {kHandover, grant.epoch, ""});
    receiver_.TakeMessages();
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

}  // namespace
}  // namespace tandem
