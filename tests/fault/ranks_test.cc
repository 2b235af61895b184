// Workers of several processes (tensor parallelism): one that is lost takes its worker along, and nothing else.

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

GenerateOptions Request() {
  GenerateOptions options;
  options.text = "The history of the lighthouse begins in antiquity.";
  options.sampling.max_tokens = 256;  // So many last longer than it takes to learn who answers.
  options.sampling.ignore_eos = true;
  return options;
}

// Two workers of three ranks each.
class RanksTest : public testing::Test {
 protected:
  RanksTest() : cluster_({.prefill_replicas = 0, .decode_ranks = 3}) {}
  void SetUp() override { ASSERT_TRUE(cluster_.AwaitReady()) << cluster_.Output(); }
  void TearDown() override {
    if (HasFailure()) std::cerr << cluster_.Output();
  }
  // Signals a process of the worker that answers, when 8 tokens have come; the answer is that of a cluster where
  // nothing happened. `suffix`: which process. Returns the worker.
  std::string StrikeMidStream(const std::string& suffix, int signal) {
    const ProcessCluster::Answer undisturbed = cluster_.Ask(Request());
    EXPECT_THAT(undisturbed.summary, IsOk());
    EXPECT_TRUE(cluster_.AwaitAllPagesFree());  // By the heartbeats, which must not be those of this answer any more.
    std::string worker;
    const ProcessCluster::Answer answer = cluster_.Ask(Request(), [&](int tokens) {
      if (tokens < 8 || !worker.empty()) return true;
      worker = BusyWorker();
      cluster_.Signal(worker + suffix, signal);
      return true;
    });
    EXPECT_THAT(answer.summary, IsOk());
    EXPECT_EQ(answer.tokens, undisturbed.tokens);
    EXPECT_TRUE(answer.summary.ok() && answer.summary->retries >= 1);
    return worker;
  }
  // By its heartbeats.
  std::string BusyWorker() {
    for (const absl::Time end = absl::Now() + absl::Seconds(10); absl::Now() < end;) {
      const absl::StatusOr<ClusterSummary> status = cluster_.client().Status();
      if (!status.ok()) return "";
      for (const WorkerSummary& worker : status->workers) {
        if (worker.running > 0) return worker.worker_id;
      }
      absl::SleepFor(absl::Milliseconds(10));  // Between two questions to a real cluster, which needs the processor.
    }
    return "";
  }
  void ExpectAllOfItRestarted(const std::string& worker) {
    for (const char* suffix : {"", "-rank-1", "-rank-2"}) {
      EXPECT_TRUE(cluster_.AwaitRestarts(worker + suffix, 1)) << suffix;
    }
    EXPECT_TRUE(cluster_.AwaitReady());
    EXPECT_TRUE(cluster_.AwaitAllPagesFree());
    EXPECT_EQ(cluster_.restarts("decode-0") + cluster_.restarts("decode-1"), 1);
  }
  ProcessCluster cluster_;
};

TEST_F(RanksTest, OneThatIsKilledTakesItsWorkerAlongAndTheAnswerGoesOn) {
  ExpectAllOfItRestarted(StrikeMidStream("-rank-1", SIGKILL));
}

TEST_F(RanksTest, TheFirstThatIsKilledTakesTheOthersAlongAndTheAnswerGoesOn) {
  ExpectAllOfItRestarted(StrikeMidStream("", SIGKILL));
}

TEST_F(RanksTest, OneThatIsStoppedMidStreamLosesNoAnswer) {
  const std::string worker = StrikeMidStream("-rank-2", SIGSTOP);
  // It registers again, but stands still: nobody is sent there.
  GenerateOptions short_request = Request();
  short_request.sampling.max_tokens = 4;
  for (int i = 0; i < 4; ++i) {
    const ProcessCluster::Answer answer = cluster_.Ask(short_request);
    ASSERT_THAT(answer.summary, IsOk());
    EXPECT_EQ(answer.summary->retries, 0);
  }
  cluster_.Signal(worker + "-rank-2", SIGCONT);
  EXPECT_TRUE(cluster_.AwaitReady());
  EXPECT_TRUE(cluster_.AwaitAllPagesFree());
}

TEST_F(RanksTest, OneThatIsLostWhileNothingRunsComesBackWithItsWorker) {
  cluster_.Signal("decode-0-rank-1", SIGKILL);
  EXPECT_TRUE(cluster_.AwaitRestarts("decode-0", 1));
  EXPECT_TRUE(cluster_.AwaitReady());
  EXPECT_THAT(cluster_.Ask(Request()).summary, IsOk());
}

TEST_F(RanksTest, AWorkerThatIsAskedToStopLeavesWithItsRanks) {
  cluster_.Signal("decode-0", SIGTERM);
  for (const char* process : {"decode-0 | has left", "decode-0-rank-1 | has left", "decode-0-rank-2 | has left"}) {
    EXPECT_TRUE(cluster_.AwaitOutput(process)) << process;
  }
  EXPECT_THAT(cluster_.Ask(Request()).summary, IsOk());
  EXPECT_THAT(cluster_.Output(), Not(HasSubstr("cannot go on without the others")));
}

// Another process has the worker's port: rank 0 fails after all have met, and its ranks come back with it.
TEST(RanksStartTest, AStartOfRankZeroThatFailsLosesNoRank) {
  const int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);  // The processes must not have it.
  sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(taken, 1), 0);
  ASSERT_EQ(getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ProcessCluster cluster(
      {.prefill_replicas = 0, .decode_replicas = 1, .decode_ranks = 3, .decode_service_port = ntohs(address.sin_port)});
  EXPECT_TRUE(cluster.AwaitRestarts("decode-0", 2)) << cluster.Output();
  close(taken);
  EXPECT_TRUE(cluster.AwaitReady()) << cluster.Output();
  EXPECT_THAT(cluster.Ask(Request()).summary, IsOk());
  EXPECT_THAT(cluster.Output(), Not(HasSubstr("has left")));
}

TEST_F(RanksTest, ARankThatIsAskedToStopWaitsForItsWorker) {
  cluster_.Signal("decode-0-rank-1", SIGTERM);
  EXPECT_THAT(cluster_.Ask(Request()).summary, IsOk());
  EXPECT_EQ(cluster_.restarts("decode-0"), 0);
  cluster_.Signal("decode-0", SIGTERM);
  EXPECT_TRUE(cluster_.AwaitOutput("decode-0-rank-1 | has left"));
}

}  // namespace
}  // namespace tandem
