// Several routers on the same workers.

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

GenerateOptions Request(int topic, int max_tokens) {
  GenerateOptions options;
  options.text = absl::StrCat("Chapter ", topic, " tells of the lighthouse, of those who built it and of the sea.");
  options.sampling.max_tokens = max_tokens;
  options.sampling.ignore_eos = true;
  return options;
}

struct Outcome {
  absl::StatusOr<GenerateSummary> summary = absl::UnknownError("not run");
  std::vector<TokenId> tokens;
};

class RoutersTest : public testing::Test {
 protected:
  RoutersTest() : cluster_({.routers = 2}) {}
  void SetUp() override {
    ASSERT_TRUE(cluster_.AwaitReady()) << cluster_.Output();
    ASSERT_TRUE(AwaitReady(1)) << cluster_.Output();
  }
  void TearDown() override {
    if (HasFailure()) std::cerr << cluster_.Output();
  }
  // A router knows all four workers, and their links.
  bool AwaitReady(int router) {
    RouterClient client(cluster_.router(router));
    for (const absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end;) {
      const absl::StatusOr<ClusterSummary> status = client.Status();
      if (!status.ok() || !status->ready || status->workers.size() != 4 || status->links.size() != 4) continue;
      if (std::all_of(status->links.begin(), status->links.end(), [](const LinkSummary& link) { return link.up; })) {
        return true;
      }
    }
    return false;
  }
  Outcome Ask(int router, const GenerateOptions& options, const std::function<void(int tokens)>& on_tokens = nullptr) {
    RouterClient client(cluster_.router(router));
    Outcome outcome;
    outcome.summary = client.Generate(options, [&](const GeneratedPiece& piece) {
      for (const auto& token : piece.tokens) outcome.tokens.push_back(token.token);
      if (on_tokens) on_tokens(static_cast<int>(outcome.tokens.size()));
      return true;
    });
    return outcome;
  }
  ProcessCluster cluster_;
};

TEST_F(RoutersTest, BothServeTheSameWorkersAtOnce) {
  std::vector<std::vector<TokenId>> wanted;
  for (int topic = 0; topic < 4; ++topic) wanted.push_back(Ask(0, Request(topic, 24)).tokens);
  std::vector<std::thread> clients;
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&, i] {
      const Outcome outcome = Ask(i % 2, Request(i / 2 % 4, 24));
      EXPECT_THAT(outcome.summary, IsOk());
      EXPECT_EQ(outcome.tokens, wanted[i / 2 % 4]);
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(cluster_.AwaitAllPagesFree());
}

TEST_F(RoutersTest, OneThatIsKilledTakesOnlyItsOwnStreamsAlong) {
  const std::vector<TokenId> wanted = Ask(0, Request(0, 192)).tokens;
  ASSERT_EQ(wanted.size(), 192);
  Outcome killed;
  std::thread other;
  std::atomic<bool> is_streaming = false, is_killed = false;
  other = std::thread([&] {
    killed = Ask(1, Request(1, 192), [&](int) {
      is_streaming = true;
      while (!is_killed) std::this_thread::yield();
    });
  });
  const Outcome survivor = Ask(0, Request(0, 192), [&](int tokens) {
    if (tokens < 8 || is_killed) return;
    while (!is_streaming) std::this_thread::yield();
    cluster_.Signal("router-1", SIGKILL);
    is_killed = true;
  });
  other.join();
  ASSERT_THAT(survivor.summary, IsOk());
  EXPECT_EQ(survivor.tokens, wanted);
  EXPECT_EQ(survivor.summary->retries, 0);
  EXPECT_THAT(killed.summary, StatusIs(absl::StatusCode::kUnavailable));
  // What it was about is given back, and it comes back by itself.
  EXPECT_TRUE(cluster_.AwaitAllPagesFree());
  EXPECT_TRUE(cluster_.AwaitRestarts("router-1", 1));
  ASSERT_TRUE(AwaitReady(1));
  EXPECT_EQ(Ask(1, Request(0, 192)).tokens, wanted);
  EXPECT_THAT(cluster_.Output(), testing::Not(HasSubstr("link lost")));
}

TEST_F(RoutersTest, AWorkerThatIsLostIsReplacedOnBoth) {
  const std::vector<TokenId> wanted = Ask(0, Request(2, 16)).tokens;
  cluster_.Signal("decode-0", SIGKILL);
  EXPECT_TRUE(cluster_.AwaitRestarts("decode-0", 1));
  EXPECT_TRUE(cluster_.AwaitReady());
  EXPECT_TRUE(AwaitReady(1));
  for (int router : {0, 1}) EXPECT_EQ(Ask(router, Request(2, 16)).tokens, wanted);
}

TEST_F(RoutersTest, DrainingThroughOneIsKnownToTheOther) {
  EXPECT_THAT(RouterClient(cluster_.router(1)).Drain("prefill-0"), IsOk());
  EXPECT_TRUE(cluster_.AwaitOutput("prefill-0 | has left"));
  for (int router : {0, 1}) EXPECT_THAT(Ask(router, Request(3, 8)).summary, IsOk());
}

}  // namespace
}  // namespace tandem
