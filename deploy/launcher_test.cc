#include "deploy/launcher.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

// A launcher of shell scripts in place of our programs.
class LauncherTest : public testing::Test {
 protected:
  LauncherTest() {
    std::string pattern = std::filesystem::temp_directory_path() / "tandem-launcher-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    Script("tandem-router", "exec sleep 100");
  }
  ~LauncherTest() override { std::filesystem::remove_all(folder_); }

  void Script(const std::string& name, const std::string& body) {
    std::ofstream(folder_ / name) << "#!/bin/sh\n" << body << "\n";
    chmod((folder_ / name).c_str(), 0755);
  }
  std::unique_ptr<Launcher> Start(const std::string& more = "", const std::string& listen = "unix:/r") {
    absl::StatusOr<Topology> topology =
        Topology::Parse("model: {path: /m, served_name: m}\nrouter: {listen: '" + listen +
                            "', metrics_listen: ''}\n"
                            "pools: [{name: decode, role: decode}]\n" +
                            more,
                        "t.yaml");
    EXPECT_THAT(topology, IsOk());
    Launcher::Options options;
    options.program_folder = folder_;
    options.on_line = [this](const std::string& process, const std::string& line) {
      lines_.push_back(process + ": " + line);
    };
    options.first_backoff = absl::Milliseconds(10);
    auto launcher = std::make_unique<Launcher>(*topology, std::move(options));
    EXPECT_THAT(launcher->StartAll(), IsOk());
    return launcher;
  }
  template <typename Predicate>
  bool RunUntil(Launcher& launcher, Predicate predicate) {
    const absl::Time deadline = Clock::Real().Now() + absl::Seconds(20);
    while (!predicate() && Clock::Real().Now() < deadline) launcher.RunFor(absl::Milliseconds(5));
    return predicate();
  }

  std::filesystem::path folder_;
  std::vector<std::string> lines_;
};

TEST_F(LauncherTest, AProcessThatLeavesIsNotStartedAgain) {
  Script("tandem-decode", "printf 'last words'; exit 0");
  auto launcher = Start();
  ASSERT_TRUE(RunUntil(*launcher, [&] { return launcher->pid("decode-0") == 0; }));
  launcher->RunFor(absl::Milliseconds(50));  // Longer than the pause before a start.
  EXPECT_EQ(launcher->pid("decode-0"), 0);
  EXPECT_EQ(launcher->restarts("decode-0"), 0);
  EXPECT_THAT(lines_, Contains("decode-0: last words"));
  EXPECT_THAT(lines_, Contains("decode-0: has left"));
  EXPECT_NE(launcher->pid("router"), 0);
}

TEST_F(LauncherTest, ItsProcessesHaveASecretThatNobodyElseKnows) {
  for (const char* program : {"tandem-router", "tandem-decode"}) {
    Script(program, "echo secret $TANDEM_CLUSTER_SECRET; exec sleep 100");
  }
  const auto drawn = [&] {
    lines_.clear();
    auto launcher = Start();
    EXPECT_TRUE(RunUntil(*launcher, [&] { return lines_.size() == 2; }));
    std::sort(lines_.begin(), lines_.end());
    EXPECT_THAT(lines_[0], testing::MatchesRegex("decode-0: secret [0-9a-f]{32}"));
    EXPECT_EQ(lines_[1].substr(lines_[1].find("secret")), lines_[0].substr(lines_[0].find("secret")));
    return lines_[0];
  };
  EXPECT_NE(drawn(), drawn());
  // Who starts them may choose it.
  setenv("TANDEM_CLUSTER_SECRET", "chosen-0123456789", /*overwrite=*/1);
  lines_.clear();
  {
    auto launcher = Start();
    EXPECT_TRUE(RunUntil(*launcher, [&] { return lines_.size() == 2; }));
  }
  unsetenv("TANDEM_CLUSTER_SECRET");
  EXPECT_THAT(lines_, Contains("decode-0: secret chosen-0123456789"));
  // With TLS a process proves itself by its certificate, and may be on another machine.
  lines_.clear();
  const std::string tls = "tls: {certificate: c, key: k, authorities: a}\n";
  {
    auto launcher = Start(tls, "127.0.0.1:7999");
    EXPECT_TRUE(RunUntil(*launcher, [&] { return lines_.size() == 2; }));
  }
  EXPECT_THAT(lines_, Contains("decode-0: secret"));
  // There are no certificates on a Unix socket.
  lines_.clear();
  auto launcher = Start(tls);
  EXPECT_TRUE(RunUntil(*launcher, [&] { return lines_.size() == 2; }));
  EXPECT_THAT(lines_, Contains(testing::MatchesRegex("decode-0: secret [0-9a-f]{32}")));
}

TEST_F(LauncherTest, AProcessThatIsToStartAgainDoesSoAtOnce) {
  Script("tandem-decode", absl::StrCat("test -e ", (folder_ / "been").string(), " && exec sleep 100; touch ",
                                       (folder_ / "been").string(), "; exit ", kStartAgainExitCode));
  auto launcher = Start();
  ASSERT_TRUE(RunUntil(*launcher, [&] { return launcher->restarts("decode-0") == 1; }));
  EXPECT_THAT(lines_, Contains("decode-0: has left and starts again, as it was asked to"));
  EXPECT_NE(launcher->pid("decode-0"), 0);
}

TEST_F(LauncherTest, AProcessThatFailsIsStartedAgainAfterGrowingPauses) {
  Script("tandem-decode", "printf half; exit 3");
  auto launcher = Start();
  ASSERT_TRUE(RunUntil(*launcher, [&] { return launcher->restarts("decode-0") >= 3; }));
  EXPECT_THAT(lines_, Contains("decode-0: half"));
  EXPECT_THAT(lines_, Contains("decode-0: ended with code 3; starts again in 10ms"));
  EXPECT_THAT(lines_, Contains("decode-0: ended with code 3; starts again in 40ms"));
}

TEST_F(LauncherTest, AHurryEndsProcessesThatDoNotListen) {
  Script("tandem-decode", "trap '' TERM; echo up; while :; do sleep 1; done");
  auto launcher = Start();
  ASSERT_TRUE(RunUntil(*launcher, [&] { return !lines_.empty(); }));
  launcher->StopAll(absl::Hours(1), [] { return true; });
  EXPECT_EQ(launcher->pid("decode-0"), 0);
  EXPECT_EQ(launcher->pid("router"), 0);
}

TEST_F(LauncherTest, AMissingProgramIsNamed) {
  absl::StatusOr<Topology> topology =
      Topology::Parse("model: {path: /m, served_name: m}\npools: [{name: decode, role: decode}]\n", "t.yaml");
  ASSERT_THAT(topology, IsOk());
  Launcher launcher(*topology, {.program_folder = "/no/such/folder"});
  EXPECT_THAT(launcher.StartAll(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tandem-router")));
}

}  // namespace
}  // namespace tandem
