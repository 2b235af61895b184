#include <numeric>
#include <random>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/page_pool.h"
#include "engine/prefix_index.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

int SumOfStates(const PagePool& pool) {
  int sum = 0;
  for (int i = 0; i < kNumPageStates; ++i) sum += pool.count(static_cast<PageState>(i));
  return sum;
}

TEST(PagePoolTest, AllocatesAllOrNothing) {
  PagePool pool(4);
  std::vector<PageIndex> evicted;
  EXPECT_FALSE(pool.Allocate(5, PageState::kInUse, evicted).has_value());
  EXPECT_EQ(pool.available(), 4);
  EXPECT_THAT(*pool.Allocate(4, PageState::kInUse, evicted), SizeIs(4));
  EXPECT_FALSE(pool.Allocate(1, PageState::kInUse, evicted).has_value());
}

TEST(PagePoolTest, EvictsTheLongestReleasedFirst) {
  PagePool pool(3);
  std::vector<PageIndex> evicted;
  std::vector<PageIndex> pages = *pool.Allocate(3, PageState::kInUse, evicted);
  for (PageIndex page : {pages[1], pages[0], pages[2]}) pool.Release(page, /*keep_cached=*/true);
  EXPECT_EQ(pool.count(PageState::kCached), 3);
  EXPECT_THAT(*pool.Allocate(2, PageState::kGranted, evicted), SizeIs(2));
  EXPECT_THAT(evicted, ElementsAre(pages[1], pages[0]));
}

TEST(PagePoolTest, SharedPagesStayUntilTheLastOwner) {
  PagePool pool(1);
  std::vector<PageIndex> evicted;
  PageIndex page = (*pool.Allocate(1, PageState::kInUse, evicted))[0];
  pool.AddReference(page);
  pool.Release(page, true);
  EXPECT_EQ(pool.state(page), PageState::kInUse);
  pool.Release(page, true);
  EXPECT_EQ(pool.state(page), PageState::kCached);
  pool.AddReference(page);  // A hit brings it back.
  EXPECT_EQ(pool.state(page), PageState::kInUse);
}

TEST(PagePoolTest, QuarantinedPagesAreNotHandedOut) {
  PagePool pool(2);
  std::vector<PageIndex> evicted;
  std::vector<PageIndex> pages = *pool.Allocate(2, PageState::kGranted, evicted);
  pool.SetState(pages[0], PageState::kQuarantined);
  pool.Release(pages[1], false);
  EXPECT_FALSE(pool.Allocate(2, PageState::kInUse, evicted).has_value());
  pool.Release(pages[0], false);
  EXPECT_TRUE(pool.Allocate(2, PageState::kInUse, evicted).has_value());
}

TEST(PagePoolTest, CountsAlwaysSumToThePool) {
  PagePool pool(16);
  std::mt19937 random(2);
  std::vector<PageIndex> owned;
  for (int round = 0; round < 5000; ++round) {
    std::vector<PageIndex> evicted;
    switch (random() % 4) {
      case 0:
        if (auto pages = pool.Allocate(random() % 4, PageState::kGranted, evicted); pages.has_value()) {
          owned.insert(owned.end(), pages->begin(), pages->end());
        }
        break;
      case 1:
        if (!owned.empty()) {
          pool.Release(owned.back(), random() % 2 == 0);
          owned.pop_back();
        }
        break;
      case 2:
        if (!owned.empty()) {
          PageState states[] = {PageState::kInUse, PageState::kCommitted, PageState::kQuarantined};
          pool.SetState(owned[random() % owned.size()], states[random() % 3]);
        }
        break;
      default:
        break;
    }
    ASSERT_EQ(SumOfStates(pool), 16);
    ASSERT_EQ(pool.available(), 16 - static_cast<int>(owned.size()));
  }
}

TEST(PrefixIndexTest, AHashHitWithOtherTokensIsNoHit) {
  PrefixIndex index(2);
  std::vector<TokenId> mine = {1, 2}, other = {3, 4};
  ASSERT_TRUE(index.Insert(77, mine, 5));
  EXPECT_THAT(index.Match({77}, mine), ElementsAre(5));
  EXPECT_THAT(index.Match({77}, other), IsEmpty());
}

TEST(PrefixIndexTest, ReportsChangesOnce) {
  PrefixIndex index(1);
  std::vector<TokenId> token = {1};
  index.Insert(7, token, 0);
  EXPECT_FALSE(index.Insert(7, token, 1));  // The first page stays.
  index.Insert(8, token, 2);
  index.Remove(0);
  index.Remove(0);
  // What came and went since is not held now.
  EXPECT_THAT(index.TakeChanges(), testing::UnorderedElementsAre(std::pair(7, false), std::pair(8, true)));
  EXPECT_THAT(index.TakeChanges(), IsEmpty());
}

TEST(KvCacheTest, PublishingInPiecesIsPublishingAtOnce) {
  std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  KvCache at_once(8, 2), in_pieces(8, 2);
  const uint64_t chain = at_once.Publish(tokens, *at_once.Allocate(5));
  std::vector<PageIndex> pages = *in_pieces.Allocate(5);
  const uint64_t half = in_pieces.Publish(absl::MakeConstSpan(tokens).subspan(0, 5), pages);
  for (uint64_t known : {half, uint64_t{0}}) EXPECT_EQ(in_pieces.Publish(tokens, pages, 2, known), chain);
  EXPECT_EQ(in_pieces.index().TakeChanges(), at_once.index().TakeChanges());
}

TEST(KvCacheTest, FindsTheLongestPrefixButNeverTheLastToken) {
  KvCache cache(8, 2);
  std::vector<TokenId> tokens = {1, 2, 3, 4};
  std::vector<PageIndex> pages = *cache.Allocate(2);
  cache.Publish(tokens, pages);
  cache.Release(pages);
  EXPECT_THAT(cache.AcquirePrefix(tokens), ElementsAre(pages[0]));  // Token 4 must be computed.
  EXPECT_THAT(cache.AcquirePrefix(std::vector<TokenId>{1, 2, 3, 4, 5}), ElementsAre(pages[0], pages[1]));
  EXPECT_THAT(cache.AcquirePrefix(std::vector<TokenId>{1, 9, 3}), IsEmpty());
}

TEST(KvCacheTest, EvictionForgetsThePrefixAndItsEndFirst) {
  KvCache cache(2, 1);
  std::vector<TokenId> tokens = {1, 2};
  std::vector<PageIndex> pages = *cache.Allocate(2);
  cache.Publish(tokens, pages);
  cache.Release(pages);
  std::vector<PageIndex> taken = *cache.Allocate(1);
  EXPECT_THAT(taken, ElementsAre(pages[1]));
  EXPECT_EQ(cache.FindPrefix(std::vector<TokenId>{1, 2, 3}).pages, 1);
}

}  // namespace
}  // namespace tandem
