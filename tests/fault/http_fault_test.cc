// Streams over HTTP while workers are killed and stopped.

#include <signal.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/http_client.h"
#include "tests/support/process_cluster.h"

namespace tandem {
namespace {

constexpr int kClients = 4, kRequests = 180, kPrompts = 4, kTokens = 24;

std::string Body(int prompt) {
  static const char* const texts[kPrompts] = {"The first lighthouse stood", "Once upon a time there was a king who",
                                              "Water boils at", "Some numbers as JSON:"};
  static const char* const formats[kPrompts] = {
      "", "", "", R"(,"structured_outputs":{"json":{"type":"array","items":{"type":"integer"},"minItems":30}})"};
  return absl::StrCat("{\"prompt\":\"", texts[prompt % kPrompts], "\",\"max_tokens\":", kTokens,
                      ",\"temperature\":0,\"ignore_eos\":true,\"stream\":true", formats[prompt % kPrompts], "}");
}

// The events of an answer without what differs between two that should be alike.
std::string TextOf(const HttpAnswer& answer) {
  std::string text;
  absl::string_view rest = answer.body;
  constexpr absl::string_view kField = "\"text\":\"";
  for (size_t at; (at = rest.find(kField)) != absl::string_view::npos;) {
    rest.remove_prefix(at + kField.size());
    absl::StrAppend(&text, rest.substr(0, rest.find("\",\"logprobs\"")));
  }
  return text;
}

// Files, sockets among them. Where nothing may be skipped, it is an error that they cannot.
bool CanOpen(rlim_t count) {
  rlimit files;
  EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  const bool can = files.rlim_max >= count;
  if (std::getenv("TANDEM_SKIP_NOTHING") != nullptr) {
    EXPECT_TRUE(can) << files.rlim_max;
  }
  return can;
}

TEST(HttpFaultTest, EveryStreamIsWholeWhileWorkersAreKilledStoppedRestartedAndDrained) {
  ProcessCluster::Options options;
  options.router_extra = "  max_retries: 20\n  placement_timeout: 20s\n";
  ProcessCluster cluster(options);
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  std::vector<std::string> reference;
  for (int i = 0; i < kPrompts; ++i) {
    const HttpAnswer answer = HttpClient(address).Ask("POST", "/v1/completions", Body(i));
    ASSERT_EQ(answer.status, 200) << answer.body;
    reference.push_back(TextOf(answer));
    ASSERT_FALSE(reference.back().empty());
  }
  EXPECT_TRUE(absl::StartsWith(reference.back(), "[")) << reference.back();

  std::atomic<int> next = 0, whole = 0;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&] {
      HttpClient client(address);  // One connection for all requests.
      for (int i; (i = next++) < kRequests;) {
        switch (i) {
          case 10:
            cluster.Signal("decode-0", SIGKILL);
            break;
          case 30:
            cluster.Signal("prefill-0", SIGKILL);
            break;
          case 50:
            cluster.Signal("decode-1", SIGSTOP);
            break;
          case 70:
            cluster.Signal("decode-1", SIGCONT);
            break;
          case 80:
            cluster.Signal("prefill-1", SIGSTOP);
            break;
          case 100:
            cluster.Signal("prefill-1", SIGCONT);
            break;
          case 110:
            EXPECT_TRUE(cluster.client().Drain("decode-1", /*start_again=*/true).ok());
            break;
          case 130:
            EXPECT_TRUE(cluster.client().Drain("prefill-0", /*start_again=*/true).ok());
            break;
          case 150:
            EXPECT_TRUE(cluster.client().Drain("prefill-1").ok());
            break;
        }
        const HttpAnswer answer = client.Ask("POST", "/v1/completions", Body(i));
        EXPECT_EQ(answer.status, 200) << answer.body;
        EXPECT_EQ(TextOf(answer), reference[i % kPrompts]);
        EXPECT_TRUE(absl::EndsWith(answer.body, "data: [DONE]\n\n")) << answer.body;
        ++whole;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(whole, kRequests);
  EXPECT_TRUE(cluster.AwaitWorkers(/*workers=*/3, /*links=*/2));  // One has left for good.
  EXPECT_TRUE(cluster.AwaitAllPagesFree(/*have_left=*/1));
}

// Each has sent half a header, and sends no more.
TEST(HttpFaultTest, TenThousandSlowConnectionsDoNotStopTheRouterAndCostLittle) {
  constexpr int kConnections = 10'000;
  if (!CanOpen(kConnections + 1000)) GTEST_SKIP() << "too few files can be open here";
  ProcessCluster cluster({.prefill_replicas = 0, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  const int64_t before = cluster.ResidentBytes("router");
  std::vector<std::unique_ptr<HttpClient>> slow;
  const absl::Time begin = Clock::Real().Now();
  for (int i = 0; i < kConnections; ++i) {
    slow.push_back(std::make_unique<HttpClient>(address));
    ASSERT_TRUE(slow.back()->Send("POST /v1/completions HTTP/1.1\r\nX-Slow: ")) << i;
  }
  const absl::Time opened = Clock::Real().Now();
  const HttpAnswer answer = HttpClient(address).Ask("POST", "/v1/completions", Body(0));
  EXPECT_EQ(answer.status, 200);
  EXPECT_FALSE(TextOf(answer).empty());
  EXPECT_LT(cluster.ResidentBytes("router") - before, 60 << 20);
  // Half of them go on, a byte each two seconds, which gives them no more time than the others.
  absl::Time trickled = opened;
  while (Clock::Real().Now() - begin < absl::Seconds(20)) {
    for (int i = 1; i < kConnections; i += 2) ASSERT_TRUE(slow[i]->Send("x")) << i;
    trickled = Clock::Real().Now();
    ASSERT_EQ(slow[0]->DrainFor(/*seconds=*/2), 0);
  }
  if (trickled - opened < absl::Seconds(5)) GTEST_SKIP() << "opening them takes too long here";
  EXPECT_LT(cluster.ResidentBytes("router") - before, 60 << 20);
  // After half a minute each is told that it is too slow, and the connection ends.
  for (const auto& client : slow) {
    ASSERT_GT(client->DrainFor(/*seconds=*/40), 0);
    ASSERT_TRUE(client->ReadsEnd());
  }
  EXPECT_LT(Clock::Real().Now(), trickled + absl::Seconds(30)) << "a byte gave them more time";
  const int64_t after = cluster.ResidentBytes("router");
  slow.clear();
  for (int i = 0; i < kConnections; ++i) {  // Whoever comes next finds the same memory.
    slow.push_back(std::make_unique<HttpClient>(address));
    ASSERT_TRUE(slow.back()->Send("POST /v1/completions HTTP/1.1\r\nX-Slow: ")) << i;
  }
  EXPECT_EQ(HttpClient(address).Ask("GET", "/health").status, 200);
  EXPECT_LT(cluster.ResidentBytes("router") - after, 10 << 20);
}

// Prompts of 100 KB each; a request that waits is held as tokens, not as its text.
TEST(HttpFaultTest, TenThousandLongPromptsThatWaitTakeBoundedMemory) {
  constexpr int kWaiting = 10'000, kWords = 5600, kAtOnce = 1000, kAnswered = 200;
  constexpr int64_t kMostBytesOfEach = 60 << 10;
  if (!CanOpen(kWaiting + 1000)) GTEST_SKIP() << "too few files can be open here";
  ProcessCluster cluster({.prefill_replicas = 0,
                          .decode_replicas = 1,
                          .decode_kv_memory = "256 MiB",
                          .router_extra = absl::StrCat("  max_active_requests: ", kWaiting, "\n"),
                          .limits = absl::StrCat("{max_waiting_requests: ", kWaiting, "}")});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  std::string text;
  for (int i = 0; i < kWords; ++i) text += " telecommunications";  // A token each.
  ASSERT_GT(text.size(), 100 << 10);
  const int64_t before = cluster.ResidentBytes("router");
  std::vector<std::unique_ptr<HttpClient>> clients(kWaiting);
  for (int i = 0; i < kWaiting; ++i) {
    clients[i] = std::make_unique<HttpClient>(address);
    // Each of its own, so that none is found in the prefix cache.
    clients[i]->SendRequest("POST", "/v1/completions", absl::StrCat("{\"max_tokens\":1,\"prompt\":\"", i, text, "\"}"));
    // Texts that wait to become tokens are bounded, too: more would be refused. Few are answered meanwhile.
    if ((i + 1) % kAtOnce == 0) {
      ASSERT_TRUE(cluster.AwaitActive(i + 1 - kAnswered)) << i;
    }
  }
  const int64_t grown = cluster.ResidentBytes("router") - before;
  printf("router: %.1f KiB for each of %d waiting prompts of %.0f KiB; worker: %.0f MiB in all\n",
         static_cast<double>(grown) / kWaiting / 1024, kWaiting, static_cast<double>(text.size()) / 1024,
         static_cast<double>(cluster.ResidentBytes("decode-0")) / (1 << 20));
  EXPECT_LT(grown, kWaiting * kMostBytesOfEach);
  EXPECT_EQ(HttpClient(address).Ask("GET", "/health").status, 200);
  clients.clear();
  EXPECT_TRUE(cluster.AwaitActive(0));
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

TEST(HttpFaultTest, AShortPromptDoesNotWaitBehindALongOne) {
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1, .conditional_prefill_tokens = 64});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  HttpClient first(address), second(address);
  const std::string reference = TextOf(first.Ask("POST", "/v1/completions", Body(0)));
  std::string ids = "100";
  for (int i = 1; i < 2400; ++i) absl::StrAppend(&ids, ",", 100 + i % 1000);
  second.SendRequest("POST", "/v1/completions", absl::StrCat("{\"prompt\":[", ids, "],\"max_tokens\":1}"),
                     "X-Request-Id: long\r\n");
  while (!cluster.client().Explain("long").ok()) {  // Until it has been placed.
  }
  EXPECT_EQ(TextOf(first.Ask("POST", "/v1/completions", Body(0), "X-Request-Id: short\r\n")), reference);
  auto decisions = cluster.client().Explain("short");
  ASSERT_TRUE(decisions.ok()) << decisions.status();
  EXPECT_THAT(decisions->back().second, testing::HasSubstr("decode-0 alone: "));
  EXPECT_EQ(second.Read().status, 200);
}

TEST(HttpFaultTest, AClientThatLeavesFreesItsPages) {
  ProcessCluster cluster({});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  for (int i = 0; i < 20; ++i) {
    HttpClient client(cluster.http_address());
    client.SendRequest("POST", "/v1/completions", Body(i));
    if (i % 2 == 0) client.ReadHead();
  }
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

}  // namespace
}  // namespace tandem
