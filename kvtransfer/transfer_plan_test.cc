#include "kvtransfer/transfer_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/page_sums.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

KvLayout Layout(int layers, int heads, int page_tokens, int num_pages, int tp_rank = 0, int tp_size = 1) {
  return {.num_layers = layers,
          .num_kv_heads = heads,
          .head_dim = 4,
          .num_planes = heads == 1 ? 1 : 2,
          .element_bytes = 2,
          .page_tokens = page_tokens,
          .num_pages = num_pages,
          .tp_rank = tp_rank,
          .tp_size = tp_size};
}

// The bytes that a token's KV must have: different for each layer, plane, head, token and byte.
uint8_t Content(int layer, int plane, int head, int token, int byte) {
  return static_cast<uint8_t>(layer * 131 + plane * 71 + head * 37 + token * 11 + byte * 3 + 1);
}

void FillToken(const KvLayout& layout, PageIndex page, int slot, int token, std::vector<uint8_t>& pool) {
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    for (int plane = 0; plane < layout.num_planes; ++plane) {
      for (int head = 0; head < layout.own_heads(); ++head) {
        int64_t at = page * layout.page_bytes() + layer * layout.layer_bytes() +
                     (plane * layout.own_heads() + head) * layout.head_bytes() + slot * layout.token_bytes();
        for (int b = 0; b < layout.token_bytes(); ++b) {
          pool[at + b] = Content(layer, plane, layout.first_head() + head, token, b);
        }
      }
    }
  }
}

std::vector<PageIndex> RandomPages(int count, int num_pages, std::mt19937& random) {
  std::vector<PageIndex> pages(num_pages);
  for (int i = 0; i < num_pages; ++i) pages[i] = i;
  std::shuffle(pages.begin(), pages.end(), random);
  pages.resize(count);
  return pages;
}

int PagesFor(int tokens, int page_tokens) { return (tokens + page_tokens - 1) / page_tokens; }

TEST(TransferPlanTest, EqualLayoutsAndAdjacentPagesBecomeOneRun) {
  KvLayout layout = Layout(3, 2, 16, 8);
  std::vector<PageIndex> source = {2, 3}, destination = {5, 6};
  EXPECT_THAT(PlanTransfer(layout, {source}, layout, {destination}, {0, 32}, {0, 3}),
              ElementsAre(CopyRun{2 * layout.page_bytes(), 5 * layout.page_bytes(), 2 * layout.page_bytes()}));
}

TEST(TransferPlanTest, OneLayerGroupOfAPageIsOneRun) {
  KvLayout layout = Layout(4, 2, 16, 8);
  std::vector<PageIndex> source = {1}, destination = {7};
  EXPECT_THAT(PlanTransfer(layout, {source}, layout, {destination}, {0, 16}, {1, 3}),
              ElementsAre(CopyRun{layout.page_bytes() + layout.layer_bytes(),
                                  7 * layout.page_bytes() + layout.layer_bytes(), 2 * layout.layer_bytes()}));
}

TEST(TransferPlanTest, NothingToDoGivesNoRuns) {
  KvLayout layout = Layout(1, 2, 16, 8);
  std::vector<PageIndex> pages = {0};
  EXPECT_THAT(PlanTransfer(layout, {pages}, layout, {pages}, {3, 3}, {0, 1}), SizeIs(0));
  EXPECT_THAT(PlanTransfer(layout, {pages}, layout, {pages}, {0, 3}, {1, 1}), SizeIs(0));
}

// Property: whatever the layouts, chunks and layer groups, all source ranks together write each
// byte of every destination rank exactly once, with the right content, and nothing else.
TEST(TransferPlanTest, EveryByteLandsExactlyOnceForRandomLayouts) {
  std::mt19937 random(20261125);
  auto pick = [&](std::initializer_list<int> values) { return *(values.begin() + random() % values.size()); };
  for (int round = 0; round < 300; ++round) {
    const int heads = pick({1, 2, 4, 8}), layers = pick({1, 2, 3, 5}), tokens = 1 + random() % 70;
    const int source_tp = pick({1, 2, 4, 8}), destination_tp = pick({1, 2, 4, 8});
    const int source_page = pick({1, 4, 8, 16, 24}), destination_page = pick({1, 4, 8, 16, 20});
    const int held_pages = random() % (tokens / destination_page + 1);
    const int chunk = 1 + random() % tokens, group = 1 + random() % layers;
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << heads << " heads, " << layers << " layers, "
                                    << tokens << " tokens, tp " << source_tp << " -> " << destination_tp << ", pages "
                                    << source_page << " -> " << destination_page);
    for (int to_rank = 0; to_rank < destination_tp; ++to_rank) {
      const int to_count = PagesFor(tokens, destination_page);
      KvLayout to = Layout(layers, heads, destination_page, to_count + 3, to_rank, destination_tp);
      std::vector<PageIndex> to_pages = RandomPages(to_count - held_pages, to.num_pages, random);
      std::vector<uint8_t> to_pool(to.pool_bytes()), wanted(to.pool_bytes());
      std::vector<int> writes(to.pool_bytes());
      for (int token = held_pages * destination_page; token < tokens; ++token) {
        FillToken(to, to_pages[token / destination_page - held_pages], token % destination_page, token, wanted);
      }
      for (int from_rank = 0; from_rank < source_tp; ++from_rank) {
        KvLayout from = Layout(layers, heads, source_page, PagesFor(tokens, source_page) + 2, from_rank, source_tp);
        ASSERT_THAT(CheckCompatible(from, to), IsOk());
        std::vector<PageIndex> from_pages = RandomPages(PagesFor(tokens, source_page), from.num_pages, random);
        std::vector<uint8_t> from_pool(from.pool_bytes());
        for (int token = 0; token < tokens; ++token) {
          FillToken(from, from_pages[token / source_page], token % source_page, token, from_pool);
        }
        for (int begin = held_pages * destination_page; begin < tokens; begin += chunk) {
          for (int layer = 0; layer < layers; layer += group) {
            for (const CopyRun& run :
                 PlanTransfer(from, {from_pages}, to, {to_pages, held_pages}, {begin, std::min(tokens, begin + chunk)},
                              {layer, std::min(layers, layer + group)})) {
              ASSERT_GE(run.source, 0);
              ASSERT_LE(run.source + run.bytes, from.pool_bytes());
              ASSERT_LE(run.destination + run.bytes, to.pool_bytes());
              for (int64_t b = 0; b < run.bytes; ++b) {
                to_pool[run.destination + b] = from_pool[run.source + b];
                ++writes[run.destination + b];
              }
            }
          }
        }
      }
      ASSERT_EQ(to_pool, wanted);
      ASSERT_LE(*std::max_element(writes.begin(), writes.end()), 1);
    }
  }
}

// What both ends know of one transfer: the sums of what it writes, read at one side.
PageSums SumsOf(const KvLayout& from, absl::Span<const PageIndex> from_pages, const KvLayout& to,
                absl::Span<const PageIndex> to_pages, IndexRange tokens, IndexRange layers, const uint8_t* pool,
                PoolSide side) {
  const PageRuns cut =
      CutAtPages(PlanTransfer(from, {from_pages}, to, {to_pages}, tokens, layers), to.page_bytes(), to_pages);
  PageSums sums(to_pages.size());
  AddHostSums(pool, side, cut.runs, cut.page_of_run, sums);
  return sums;
}

TEST(TransferPlanTest, SumsOfBothSidesAgreeAndSeeEveryByte) {
  const KvLayout from = Layout(2, 2, 8, 8), to = Layout(2, 2, 16, 4);
  // The last two are neighbours in both pools, whose runs are one.
  const std::vector<PageIndex> from_pages = {3, 1, 6, 0, 4, 5}, to_pages = {2, 0, 1};
  std::vector<uint8_t> from_pool(from.pool_bytes()), to_pool(to.pool_bytes());
  for (int token = 0; token < 48; ++token) FillToken(from, from_pages[token / 8], token % 8, token, from_pool);
  for (const CopyRun& run : PlanTransfer(from, {from_pages}, to, {to_pages}, {0, 43}, {0, 2})) {
    std::copy_n(from_pool.begin() + run.source, run.bytes, to_pool.begin() + run.destination);
  }
  // The sender's, by chunk and layer group.
  PageSums sent(3);
  for (IndexRange tokens : {IndexRange{20, 43}, IndexRange{0, 20}}) {
    for (int layer : {1, 0}) {
      const PageSums part =
          SumsOf(from, from_pages, to, to_pages, tokens, {layer, layer + 1}, from_pool.data(), PoolSide::kSource);
      for (size_t i = 0; i < sent.size(); ++i) sent[i] += part[i];
    }
  }
  // The receiver's, which knows the number of the source's pages only.
  auto found = [&] {
    return SumsOf(from, std::vector<PageIndex>(6, 0), to, to_pages, {0, 43}, {0, 2}, to_pool.data(),
                  PoolSide::kDestination);
  };
  EXPECT_EQ(found(), sent);
  for (int64_t offset = 0; offset < to.page_bytes(); ++offset) {
    to_pool[to_pages[0] * to.page_bytes() + offset] ^= 1;
    ASSERT_NE(FoldSums(found())[0], FoldSums(sent)[0]) << offset;
    ASSERT_EQ(found()[1], sent[1]) << offset;
    to_pool[to_pages[0] * to.page_bytes() + offset] ^= 1;
  }
  // Of one page, two words that change places.
  std::swap_ranges(&to_pool[to_pages[1] * to.page_bytes()], &to_pool[to_pages[1] * to.page_bytes()] + 8,
                   &to_pool[to_pages[1] * to.page_bytes()] + 8);
  EXPECT_NE(FoldSums(found())[1], FoldSums(sent)[1]);
}

TEST(TransferPlanTest, RunsAreCutAtTheBordersOfDestinationPages) {
  const PageRuns cut = CutAtPages({{100, 32, 16}, {0, 80, 128}}, 64, {3, 0, 1, 2});
  EXPECT_THAT(cut.runs,
              ElementsAre(CopyRun{100, 32, 16}, CopyRun{0, 80, 48}, CopyRun{48, 128, 64}, CopyRun{112, 192, 16}));
  EXPECT_THAT(cut.page_of_run, ElementsAre(1, 2, 3, 0));
}

TEST(KvLayoutTest, RefusesPairsOfUnlikeModelsWithBothShapes) {
  KvLayout a = Layout(2, 4, 16, 8), b = Layout(3, 4, 16, 8);
  EXPECT_THAT(CheckCompatible(a, b), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prefill has 2 layers")));
  EXPECT_THAT(CheckCompatible(a, b), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("decode has 3 layers")));
}

TEST(KvLayoutTest, RefusesImpossibleLayouts) {
  KvLayout layout = Layout(2, 4, 16, 8);
  layout.num_layers = 0;
  EXPECT_THAT(layout.Validate(), StatusIs(absl::StatusCode::kInvalidArgument));
  layout = Layout(2, 4, 16, 8, /*tp_rank=*/2, /*tp_size=*/2);
  EXPECT_THAT(layout.Validate(), StatusIs(absl::StatusCode::kInvalidArgument));
  layout = Layout(2, 4, 16, 8, 0, 3);
  EXPECT_THAT(layout.Validate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("do not divide")));
}

}  // namespace
}  // namespace tandem
