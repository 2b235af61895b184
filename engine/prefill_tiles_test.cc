#include "engine/cuda/prefill_tiles.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;

auto Tile(int first_row, int num_rows, int first_position) {
  return AllOf(Field(&PrefillTile::first_row, first_row), Field(&PrefillTile::num_rows, num_rows),
               Field(&PrefillTile::first_position, first_position));
}

TEST(PrefillTilesTest, ThoseThatSeeMostComeFirst) {
  // 70 rows behind a prefix of 30 tokens, and 40 rows of a new sequence.
  const std::vector<PrefillTile> tiles = CutIntoTiles({{0, 70, 100, 0}, {70, 40, 40, 7}}, 32);
  EXPECT_THAT(tiles,
              ElementsAre(Tile(64, 6, 94), Tile(32, 32, 62), Tile(0, 32, 30), Tile(102, 8, 32), Tile(70, 32, 0)));
  EXPECT_EQ(tiles[0].context_tokens, 100);
  EXPECT_EQ(tiles[4].context_tokens, 40);
  EXPECT_EQ(tiles[0].first_page, 0);
  EXPECT_EQ(tiles[4].first_page, 7);
}

TEST(PrefillTilesTest, NoChunksGiveNoTiles) { EXPECT_TRUE(CutIntoTiles({}, 32).empty()); }

}  // namespace
}  // namespace tandem
