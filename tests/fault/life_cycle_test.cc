// Workers that are restarted on purpose, and workers that come and go, while requests run.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/rolling_restart.h"
#include "common/clock.h"
#include "common/cluster_secret.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

class RestartOfCluster final : public RollingRestartActions {
 public:
  explicit RestartOfCluster(ProcessCluster& cluster) : cluster_(cluster) {}
  absl::StatusOr<ClusterSummary> Status() override { return cluster_.client().Status(); }
  absl::Status Restart(const std::string& worker) override {
    return cluster_.client().Drain(worker, /*start_again=*/true);
  }
  void Sleep(absl::Duration duration) override { absl::SleepFor(duration); }  // Others' processes are waited for.
  void Tell(const std::string& line) override { printf("%s\n", line.c_str()); }

 private:
  ProcessCluster& cluster_;
};

// Clients that ask one after the other until they are stopped; each answer must be whole and the same.
class Traffic {
 public:
  explicit Traffic(ProcessCluster& cluster) : cluster_(cluster), reference_(cluster.Ask(kAsk).tokens) {
    for (int i = 0; i < 3; ++i) clients_.emplace_back([this] { Run(); });
  }
  ~Traffic() { Stop(); }
  // How many were answered.
  int Stop() {
    stopping_ = true;
    for (std::thread& client : clients_) {
      if (client.joinable()) client.join();
    }
    return answered_;
  }

 private:
  void Run() {
    while (!stopping_) {
      const ProcessCluster::Answer answer = cluster_.Ask(kAsk);
      EXPECT_THAT(answer.summary, IsOk());
      EXPECT_EQ(answer.tokens, reference_);
      ++answered_;
    }
  }

  const GenerateOptions kAsk{.text = "The first lighthouse stood", .sampling = {.max_tokens = 24, .ignore_eos = true}};
  ProcessCluster& cluster_;
  const std::vector<TokenId> reference_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> answered_ = 0;
  std::vector<std::thread> clients_;
};

TEST(LifeCycleTest, ARollingRestartOfEachPoolFailsNoRequest) {
  ProcessCluster cluster({});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  Traffic traffic(cluster);
  RestartOfCluster actions(cluster);
  for (const char* pool : {"decode", "prefill"}) {
    EXPECT_THAT(RestartPool(pool, absl::Seconds(30), Clock::Real(), actions), IsOk());
  }
  EXPECT_GT(traffic.Stop(), 10);
  for (const char* worker : {"decode-0", "decode-1", "prefill-0", "prefill-1"}) EXPECT_EQ(cluster.restarts(worker), 1);
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

TEST(LifeCycleTest, AWorkerOfSeveralRanksRestartsWithAllOfThem) {
  ProcessCluster cluster({.prefill_replicas = 0, .decode_replicas = 2, .decode_ranks = 3});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  Traffic traffic(cluster);
  RestartOfCluster actions(cluster);
  EXPECT_THAT(RestartPool("decode", absl::Seconds(60), Clock::Real(), actions), IsOk());
  traffic.Stop();
  for (const char* process : {"decode-0", "decode-0-rank-2", "decode-1", "decode-1-rank-1"}) {
    EXPECT_EQ(cluster.restarts(process), 1) << process;
  }
}

// decode-1 beside a cluster that has a decode-0 only, as somebody would add it: by a file with one replica more.
// With the cluster's secret, which is drawn otherwise.
class AddedWorker {
 public:
  explicit AddedWorker(ProcessCluster& cluster, std::vector<std::string> flags = {}) {
    std::ifstream file(cluster.topology_file());
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const std::string larger = cluster.topology_file() + ".larger.yaml";
    std::ofstream(larger) << absl::StrReplaceAll(text, {{"role: decode, replicas: 1", "role: decode, replicas: 2"}});
    const std::string program = absl::StrCat(TANDEM_BINARY_DIR, "/bin/tandem-decode");
    flags.insert(flags.begin(), {program, "--topology=" + larger, "--worker=decode-1"});
    std::vector<char*> arguments;
    for (std::string& flag : flags) arguments.push_back(flag.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    output_ = cluster.topology_file() + ".added.log";
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (posix_spawn(&pid_, program.c_str(), &files, nullptr, arguments.data(), environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&files);
    EXPECT_GT(pid_, 0) << program;
  }
  ~AddedWorker() {
    if (has_left_ || pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::string Output() const {
    std::ifstream file(output_);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  // Within half a minute.
  bool Writes(const std::string& text) const {
    const absl::Time begin = Clock::Real().Now();
    while (Clock::Real().Now() - begin < absl::Seconds(30)) {
      if (absl::StrContains(Output(), text)) return true;
    }
    return false;
  }
  // Within half a minute, by itself, with exit code 0.
  bool LeavesWell() {
    int status = 0;
    for (const absl::Time begin = Clock::Real().Now(); !has_left_ && Clock::Real().Now() - begin < absl::Seconds(30);) {
      has_left_ = waitpid(pid_, &status, WNOHANG) == pid_;
    }
    return has_left_ && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  std::string output_;
  pid_t pid_ = -1;
  bool has_left_ = false;
};

// Chosen for all that this process starts, while it lives.
class ChosenSecret {
 public:
  ChosenSecret() { setenv(kDrawnSecretVariable, "chosen-0123456789", /*overwrite=*/1); }
  ~ChosenSecret() { unsetenv(kDrawnSecretVariable); }
};

TEST(LifeCycleTest, AWorkerWithoutTheSecretDoesNotJoin) {
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  AddedWorker added(cluster);
  EXPECT_TRUE(added.Writes("secret is missing or is another one")) << added.Output();
  EXPECT_TRUE(cluster.AwaitWorkers(/*workers=*/2, /*links=*/1));
}

TEST(LifeCycleTest, AWorkerThatNoTopologyOfTheClusterNamesJoinsAndLeaves) {
  const ChosenSecret secret;
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  Traffic traffic(cluster);
  AddedWorker added(cluster);
  EXPECT_TRUE(cluster.AwaitWorkers(/*workers=*/3, /*links=*/2));
  EXPECT_THAT(cluster.client().Drain("decode-1"), IsOk());
  EXPECT_TRUE(added.LeavesWell());
  EXPECT_TRUE(cluster.AwaitWorkers(2, 1));
  EXPECT_GT(traffic.Stop(), 0);
}

TEST(LifeCycleTest, ARouterThatDrainsIsNotReadyAndEndsWhatItHas) {
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const GenerateOptions ask{.text = "The first lighthouse stood", .sampling = {.max_tokens = 100, .ignore_eos = true}};
  bool is_draining = false;
  const ProcessCluster::Answer answer = cluster.Ask(ask, [&](int) {
    if (std::exchange(is_draining, true)) return true;
    cluster.Signal("router", SIGTERM);
    absl::StatusOr<ClusterSummary> status;
    const absl::Time deadline = Clock::Real().Now() + absl::Seconds(20);
    do {
      status = cluster.client().Status();
    } while (status.ok() && status->ready && Clock::Real().Now() < deadline);
    EXPECT_THAT(status, IsOk());
    EXPECT_FALSE(status.ok() && status->ready);
    return true;
  });
  EXPECT_THAT(answer.summary, IsOk());
  EXPECT_EQ(answer.tokens.size(), 100);
}

TEST(LifeCycleTest, WhatRunsWhenTheDrainTimeoutIsOverGoesOnElsewhere) {
  const ChosenSecret secret;
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1, .router_extra = "  placement: least_load\n"});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const GenerateOptions ask{.text = "The first lighthouse stood", .sampling = {.max_tokens = 300, .ignore_eos = true}};
  const ProcessCluster::Answer reference = cluster.Ask(ask);
  AddedWorker added(cluster, {"--drain_timeout=100ms"});
  ASSERT_TRUE(cluster.AwaitWorkers(/*workers=*/3, /*links=*/2));
  // One is on decode-0, so that the other goes to decode-1.
  std::atomic<bool> over = false;
  GenerateOptions long_ask = ask;
  long_ask.sampling.max_tokens = 6000;
  std::thread other([&] { cluster.Ask(long_ask, [&](int) { return !over; }); });
  EXPECT_TRUE(cluster.AwaitActive(1));
  bool is_draining = false;
  const ProcessCluster::Answer answer = cluster.Ask(ask, [&](int tokens) {
    return tokens < 20 || std::exchange(is_draining, true) || cluster.client().Drain("decode-1").ok();
  });
  over = true;
  other.join();
  ASSERT_THAT(answer.summary, IsOk());
  EXPECT_EQ(answer.tokens, reference.tokens);
  EXPECT_EQ(answer.summary->retries, 1);
  EXPECT_EQ(answer.summary->decode_worker, "decode-0");
  EXPECT_TRUE(added.LeavesWell());
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

}  // namespace
}  // namespace tandem
