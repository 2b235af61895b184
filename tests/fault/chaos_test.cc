// A thousand requests with random cancels, deadlines and kills: none wrong, none hanging, no page
// leaked.

#include <signal.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

constexpr int kRequests = 1000, kClients = 6, kPrompts = 5, kTokens = 12;

GenerateOptions PromptNumber(int number) {
  static const char* const texts[kPrompts] = {"The first lighthouse stood", "Once upon a time there was a king who",
                                              "def fibonacci(n):\n", "Water boils at",
                                              "The three primary colours are red,"};
  GenerateOptions options;
  options.text = texts[number];
  options.sampling.max_tokens = kTokens;
  options.sampling.ignore_eos = true;
  return options;
}

TEST(Chaos, AThousandRequestsWithCancelsDeadlinesAndKills) {
  ProcessCluster::Options options;
  options.router_extra = "  max_retries: 20\n  placement_timeout: 20s\n";
  ProcessCluster cluster(options);
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  std::vector<std::vector<TokenId>> reference;
  for (int i = 0; i < kPrompts; ++i) {
    ProcessCluster::Answer answer = cluster.Ask(PromptNumber(i));
    ASSERT_THAT(answer.summary, IsOk());
    ASSERT_EQ(answer.tokens.size(), kTokens);
    reference.push_back(answer.tokens);
  }

  std::atomic<int> next = 0, whole = 0, cancelled = 0, expired = 0, wrong = 0;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(1000 + c);
      for (int i; (i = next++) < kRequests;) {
        if (c == 0 && i % 25 < kClients) {  // Some forty kills over the run, of each process in turn.
          static const char* const victims[] = {"prefill-0", "decode-0", "prefill-1", "decode-1"};
          cluster.Signal(victims[(i / 25) % 4], SIGKILL);
        }
        const int prompt = static_cast<int>(random() % kPrompts);
        GenerateOptions ask = PromptNumber(prompt);
        const int kind = static_cast<int>(random() % 4);
        const int stop_at = static_cast<int>(random() % kTokens);
        if (kind == 1) ask.timeout = absl::Milliseconds(random() % 60);
        ProcessCluster::Answer answer = cluster.Ask(ask, [&](int tokens) { return kind != 0 || tokens <= stop_at; });
        const absl::StatusCode code = answer.summary.status().code();
        const std::vector<TokenId>& expected = reference[prompt];
        // Whatever came is a beginning of the undisturbed answer; what ended well is all of it.
        bool right = answer.tokens.size() <= expected.size() &&
                     std::equal(answer.tokens.begin(), answer.tokens.end(), expected.begin());
        if (code == absl::StatusCode::kOk) {
          right = right && answer.tokens.size() == kTokens;
          ++whole;
        } else if (code == absl::StatusCode::kCancelled && kind == 0) {
          ++cancelled;
        } else if ((code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kResourceExhausted) &&
                   kind == 1) {  // Or refused, since it was predicted to.
          ++expired;
        } else {
          right = false;
          ADD_FAILURE() << answer.summary.status();
        }
        if (!right) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  printf("%d whole, %d cancelled, %d expired\n", whole.load(), cancelled.load(), expired.load());
  EXPECT_EQ(wrong, 0) << cluster.Output();
  EXPECT_EQ(whole + cancelled + expired, kRequests);
  EXPECT_GT(whole, kRequests / 3);
  EXPECT_GT(cancelled, 50);
  int kills = 0;
  for (const char* process : {"prefill-0", "decode-0", "prefill-1", "decode-1"}) kills += cluster.restarts(process);
  EXPECT_GE(kills, 8);
  EXPECT_TRUE(cluster.AwaitReady());
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

}  // namespace
}  // namespace tandem
