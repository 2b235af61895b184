#include "deploy/run_program.h"

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ProgramResult> RunShell(const std::string& script, absl::Duration timeout = absl::Seconds(20)) {
  return RunProgram({"/bin/sh", "-c", script}, timeout);
}

TEST(RunProgramTest, OutputsStayApartAndTheExitCodeIsKept) {
  ASSERT_OK_AND_ASSIGN(ProgramResult result, RunShell("echo answer; echo complaint >&2; exit 7"));
  EXPECT_EQ(result.output, "answer\n");
  EXPECT_EQ(result.errors, "complaint\n");
  EXPECT_EQ(result.exit_code, 7);
}

TEST(RunProgramTest, OutputLargerThanAPipeComesWhole) {
  ASSERT_OK_AND_ASSIGN(ProgramResult result, RunShell("head -c 1000000 /dev/zero"));
  EXPECT_EQ(result.output.size(), 1'000'000);
}

TEST(RunProgramTest, ASignalIsAnExitCode) {
  ASSERT_OK_AND_ASSIGN(ProgramResult result, RunShell("kill -9 $$"));
  EXPECT_EQ(result.exit_code, 137);
}

TEST(RunProgramTest, AProgramThatDoesNotEndIsKilled) {
  EXPECT_THAT(RunShell("exec sleep 1000", absl::Milliseconds(50)).status(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("/bin/sh did not end within 50ms")));
  // Also when it says nothing any more.
  EXPECT_THAT(RunShell("exec >&- 2>&-; exec sleep 1000", absl::Milliseconds(50)).status(),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(RunProgramTest, AChildThatKeepsTheOutputOpenIsNotWaitedFor) {
  const absl::Time begin = Clock::Real().Now();
  ASSERT_OK_AND_ASSIGN(ProgramResult result, RunShell("sleep 3 & echo done"));
  EXPECT_EQ(result.output, "done\n");
  EXPECT_LT(Clock::Real().Now() - begin, absl::Seconds(3));
}

TEST(RunProgramTest, AMissingProgramIsNamed) {
  EXPECT_THAT(RunProgram({"/nonexistent/program"}, absl::Seconds(1)).status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("/nonexistent/program cannot be started")));
}

}  // namespace
}  // namespace tandem
