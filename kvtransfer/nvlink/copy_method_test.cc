#include "kvtransfer/nvlink/copy_method.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

CopyMethod Choose(int64_t runs, int64_t run_bytes, bool computing, bool sees = true) {
  return ChooseCopyMethod({runs, runs * run_bytes, computing, sees}).method;
}

TEST(CopyMethodTest, OnePageIsTheCopyEngines) { EXPECT_EQ(Choose(1, 73'728, false), CopyMethod::kCopyEngine); }

TEST(CopyMethodTest, ManyPagesAreTheKernels) {
  EXPECT_EQ(Choose(122, 73'728, false), CopyMethod::kKernel);
  EXPECT_EQ(Choose(249'856, 1'152, false), CopyMethod::kKernel);
}

TEST(CopyMethodTest, LongRunsAreTheCopyEnginesHoweverMany) {
  EXPECT_EQ(Choose(64, 4 << 20, false), CopyMethod::kCopyEngine);
  EXPECT_EQ(Choose(5'000, 4 << 20, true), CopyMethod::kCopyEngine);
  EXPECT_EQ(Choose(64, (4 << 20) - 16, false), CopyMethod::kKernel);
}

TEST(CopyMethodTest, BesideComputingSomeHundredPagesAreTheCopyEngines) {
  EXPECT_EQ(Choose(122, 73'728, true), CopyMethod::kCopyEngine);
  EXPECT_EQ(Choose(3'904, 73'728, true), CopyMethod::kKernel);
}

TEST(CopyMethodTest, AHiddenDestinationIsTheKernelsAlways) {
  for (bool computing : {false, true}) {
    EXPECT_EQ(Choose(1, 73'728, computing, /*sees=*/false), CopyMethod::kKernel);
    EXPECT_EQ(Choose(64, 64 << 20, computing, /*sees=*/false), CopyMethod::kKernel);
  }
}

TEST(CopyMethodTest, UnalignedRunsAreTheCopyEnginesAlways) {
  const CopyLoad load = MakeCopyLoad(std::vector<CopyRun>(5'000, {8, 16, 32}), true, /*sees_destination=*/false);
  EXPECT_EQ(ChooseCopyMethod(load).method, CopyMethod::kCopyEngine);
}

TEST(CopyMethodTest, TheLoadIsThatOfTheRuns) {
  const CopyLoad load = MakeCopyLoad({{0, 0, 16}, {32, 64, 48}}, true, false);
  EXPECT_EQ(load.runs, 2);
  EXPECT_EQ(load.bytes, 64);
  EXPECT_TRUE(load.source_is_computing);
  EXPECT_FALSE(load.sees_destination);
  EXPECT_EQ(ChooseCopyMethod(MakeCopyLoad({}, false, true)).method, CopyMethod::kCopyEngine);  // Nothing but a flag.
}

}  // namespace
}  // namespace tandem
