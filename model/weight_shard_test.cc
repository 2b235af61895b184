#include "model/weight_shard.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(WeightShardTest, RowsAndColumnsOfEveryRankAreTheWhole) {
  std::vector<float> values;
  for (int i = 0; i < 4 * 6; ++i) values.push_back(static_cast<float>(i));
  const TensorView whole{
      "w", DType::kF32, {4, 6}, {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4}};
  for (int rank = 0; rank < 2; ++rank) {
    const TensorView rows = ShardRows(whole, {rank, 2});
    EXPECT_THAT(rows.shape, ElementsAre(2, 6));
    std::vector<float> row(6);
    DequantizeRow(rows, 1, 6, row.data());
    EXPECT_EQ(row[5], 12 * rank + 11);
    std::vector<uint8_t> storage;
    const TensorView columns = ShardColumns(whole, {rank, 2}, storage);
    EXPECT_THAT(columns.shape, ElementsAre(4, 3));
    DequantizeRow(columns, 3, 3, row.data());
    EXPECT_EQ(row[2], 18 + 3 * rank + 2);
  }
}

TEST(WeightShardTest, NamesSayHowAWeightIsCut) {
  EXPECT_EQ(CutOf("layers.3.q"), Cut::kRows);
  EXPECT_EQ(CutOf("layers.3.k.bias"), Cut::kRows);
  EXPECT_EQ(CutOf("layers.3.experts.7.up"), Cut::kRows);
  EXPECT_EQ(CutOf("layers.3.experts.7.down"), Cut::kColumns);
  EXPECT_EQ(CutOf("layers.3.o"), Cut::kColumns);
  EXPECT_EQ(CutOf("layers.3.q_norm"), Cut::kNone);
  EXPECT_EQ(CutOf("layers.3.router"), Cut::kNone);
  EXPECT_EQ(CutOf("lm_head"), Cut::kRows);
  EXPECT_EQ(CutOf("embedding"), Cut::kNone);
}

TEST(WeightShardTest, BlocksThatACutWouldSplitAreNamed) {
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(SmolLm2Path()));
  EXPECT_THAT(CheckShards(*checkpoint, 3), IsOk());
  EXPECT_THAT(CheckShards(*checkpoint, 2),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 ranks do not divide the model's key and value "
                                                                     "heads of 3")));
}

}  // namespace
}  // namespace tandem
