#include "router/worker_speed.h"

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

TEST(WorkerSpeedTest, ARateIsWhatAFullQueueIsComputedAt) {
  WorkerSpeed speed;
  EXPECT_FALSE(speed.prefill_tokens_per_second().has_value());
  // Both were sent at once; the second waited for the first.
  speed.OnFirstToken(1000, kNow, kNow + absl::Seconds(1));
  speed.OnFirstToken(1000, kNow, kNow + absl::Seconds(2));
  EXPECT_NEAR(*speed.prefill_tokens_per_second(), 1000, 1);
  // What is new counts more.
  for (int i = 2; i < 60; ++i)
    speed.OnFirstToken(1000, kNow, kNow + absl::Seconds(2) + absl::Milliseconds(500) * (i - 1));
  EXPECT_NEAR(*speed.prefill_tokens_per_second(), 2000, 50);
}

TEST(WorkerSpeedTest, ShortPromptsSayNothingOfTheRate) {
  WorkerSpeed speed;
  speed.OnFirstToken(1000, kNow, kNow + absl::Seconds(1));
  for (int i = 0; i < 100; ++i) speed.OnFirstToken(16, kNow + absl::Seconds(i + 1), kNow + absl::Seconds(i + 2));
  EXPECT_NEAR(*speed.prefill_tokens_per_second(), 1000, 1);
}

TEST(WorkerSpeedTest, PausesAreNoSteps) {
  WorkerSpeed speed;
  EXPECT_FALSE(speed.TimePerToken(1).has_value());
  speed.OnDecodeStep(4, 4, kNow);
  speed.OnDecodeStep(4, 0, kNow + absl::Milliseconds(36));
  speed.OnDecodeStep(4, 4, kNow + absl::Milliseconds(500));  // Nothing ran in between.
  speed.OnDecodeStep(4, 4, kNow + absl::Seconds(5));         // It stood still.
  EXPECT_EQ(absl::ToInt64Milliseconds(*speed.TimePerToken(4)), 36);
  EXPECT_EQ(absl::ToInt64Milliseconds(*speed.TimePerToken(40)), 72);
}

}  // namespace
}  // namespace tandem
