#include "engine/worker_reporter.h"

#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"

namespace tandem {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAreArray;

TEST(WorkerReporterTest, EachRouterLearnsOfEveryPageOnceAndOfAllAgainWhenItAsks) {
  EngineFixture fixture(SourcePath("tests/golden/tiny/llama3_f32"), {.precision = Precision::kFull, .page_tokens = 4});
  fixture.Generate(std::vector<TokenId>(20, 7), {.max_tokens = 1});
  EngineThread thread(fixture.TakeEngine(), {.on_events = [](Engine&, const std::vector<SequenceEvent>&) {}});
  WorkerReporter reporter(thread);
  WorkerHeartbeat first;
  const absl::Time begin = Clock::Real().Now();
  while (first.stored_hashes.empty() && Clock::Real().Now() - begin < absl::Seconds(20)) {
    first = reporter.Collect("router", /*restart=*/true);
  }
  ASSERT_THAT(first.stored_hashes, SizeIs(5));
  EXPECT_EQ(first.sequence, 1);
  EXPECT_THAT(reporter.Collect("other", /*restart=*/true).stored_hashes,
              UnorderedElementsAreArray(first.stored_hashes));
  const WorkerHeartbeat second = reporter.Collect("router", /*restart=*/false);
  EXPECT_EQ(second.sequence, 2);
  EXPECT_THAT(second.stored_hashes, IsEmpty());

  reporter.TellAllAgain("router");
  const WorkerHeartbeat again = reporter.Collect("router", /*restart=*/false);
  EXPECT_EQ(again.sequence, 1);
  EXPECT_THAT(again.stored_hashes, UnorderedElementsAreArray(first.stored_hashes));
  EXPECT_THAT(reporter.Collect("other", /*restart=*/false).stored_hashes, IsEmpty());
  EXPECT_EQ(reporter.Collect("router", /*restart=*/false).sequence, 2);
  thread.Stop();
}

}  // namespace
}  // namespace tandem
