#include "kvtransfer/nvlink/copy_list.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

struct Packed {
  CopyShape shape;
  std::vector<DeviceRun> runs;
  std::vector<DeviceExtent> extents;
};

absl::StatusOr<Packed> Pack(const std::vector<CopyRun>& runs) {
  Packed packed{.runs = std::vector<DeviceRun>(runs.size()), .extents = std::vector<DeviceExtent>(runs.size())};
  auto shape = PackRuns(runs, packed.runs.data(), packed.extents.data());
  if (!shape.ok()) return shape.status();
  packed.shape = *shape;
  return packed;
}

TEST(CopyListTest, AlikeRunsNeedNoExtents) {
  ASSERT_OK_AND_ASSIGN(Packed packed, Pack({{0, 73728 * 5, 73728}, {73728 * 9, 73728, 73728}}));
  EXPECT_EQ(packed.shape.uniform_vectors, 73728 / 16);
  EXPECT_EQ(packed.shape.segments_per_run, 18);
  EXPECT_EQ(packed.shape.num_segments, 36);
  EXPECT_FALSE(packed.shape.has_small_runs);
  EXPECT_EQ(packed.shape.unit_shift, 13);  // 73,728 is 9 * 8192.
  EXPECT_EQ(packed.runs[0].destination, 45);
  EXPECT_EQ(packed.runs[1].source, 81);
  EXPECT_EQ(packed.shape.source_end, 73728 * 10);
  EXPECT_EQ(packed.shape.destination_end, 73728 * 6);
}

TEST(CopyListTest, RunsOfOneTokensLatentAreSmall) {
  ASSERT_OK_AND_ASSIGN(Packed packed, Pack({{1152, 0, 1152}, {0, 1152, 1152}}));
  EXPECT_TRUE(packed.shape.has_small_runs);
  EXPECT_EQ(packed.shape.num_segments, 2);
}

TEST(CopyListTest, UnlikeRunsSayWhereTheirSegmentsBegin) {
  ASSERT_OK_AND_ASSIGN(Packed packed, Pack({{0, 0, 16}, {16, 16, 4096 + 16}, {8192, 8192, 0}, {8192, 8192, 4096}}));
  EXPECT_EQ(packed.shape.uniform_vectors, 0);
  EXPECT_EQ(packed.shape.num_segments, 4);
  EXPECT_EQ(packed.extents[1].first_segment, 1);
  EXPECT_EQ(packed.extents[1].vectors, 257);
  EXPECT_EQ(packed.extents[3].first_segment, 3);
}

TEST(CopyListTest, OffsetsComeBackForRandomLists) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    const int64_t unit = int64_t{16} << (random() % 10);
    std::vector<CopyRun> runs;
    for (int i = 0; i < 20; ++i) {
      runs.push_back({static_cast<int64_t>(random() % 1000) * unit, static_cast<int64_t>(random() % 1000) * unit,
                      static_cast<int64_t>(16 * (random() % 300))});
    }
    ASSERT_OK_AND_ASSIGN(Packed packed, Pack(runs));
    for (size_t i = 0; i < runs.size(); ++i) {
      EXPECT_EQ(int64_t{packed.runs[i].source} << packed.shape.unit_shift, runs[i].source);
      EXPECT_EQ(int64_t{packed.runs[i].destination} << packed.shape.unit_shift, runs[i].destination);
    }
  }
}

TEST(CopyListTest, AnEmptyListCopiesNothing) {
  ASSERT_OK_AND_ASSIGN(Packed packed, Pack({}));
  EXPECT_EQ(packed.shape.num_segments, 0);
}

TEST(CopyListTest, RefusesWhatTheKernelCannotCopy) {
  EXPECT_THAT(Pack({{8, 0, 16}}).status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("16 bytes")));
  EXPECT_THAT(Pack({{0, 0, 24}}).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Pack({{-16, 0, 16}}).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Pack({{0, 0, -16}}).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  // 64 GiB and more can be reached only with coarser alignment.
  EXPECT_THAT(Pack({{(int64_t{1} << 36) + 16, 0, 16}}).status(),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("too far")));
  EXPECT_THAT(Pack({{(int64_t{1} << 36) + 4096, 0, 16}}).status(), IsOk());
}

}  // namespace
}  // namespace tandem
