// Twenty streams are in flight when a worker is lost: all of them come out whole and right, and none takes more than
// two seconds longer than without the loss.

#include <signal.h>

#include <algorithm>
#include <atomic>
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

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int kStreams = 20, kTokens = 48;
constexpr absl::Duration kMostAdded = absl::Seconds(2);

// `set`: prompts of one have no beginning in common with those of another.
std::string Body(const std::string& set, int number) {
  std::string prompt = absl::StrCat(set, " ", number, ".");
  for (int i = 0; i < 6; ++i) absl::StrAppend(&prompt, " The keeper of lighthouse ", number + i, " wrote a letter.");
  return absl::StrCat("{\"prompt\":\"", prompt, "\",\"max_tokens\":", kTokens,
                      ",\"temperature\":0,\"ignore_eos\":true,\"stream\":true}");
}

struct Outcome {
  std::vector<std::string> texts;  // Of each stream; of one that is not whole, what it ended with.
  absl::Duration longest;
};

// All streams of a set at once. `disturb` is called once, when `pieces` events of all streams together have come.
Outcome RunStreams(
    const std::string& address, const std::string& set, int pieces = 0, auto disturb = [] {}) {
  Outcome outcome;
  outcome.texts.resize(kStreams);
  std::vector<absl::Duration> took(kStreams);
  std::atomic<int> seen = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&, i] {
      HttpClient client(address);
      const absl::Time begin = Clock::Real().Now();
      client.SendRequest("POST", "/v1/completions", Body(set, i));
      std::string last;
      if (const HttpAnswer head = client.ReadHead(); head.status != 200)
        last = absl::StrCat(head.status, " ", head.body);
      for (std::string chunk; !(chunk = client.ReadChunk()).empty(); last = std::move(chunk)) {
        const size_t text = chunk.find("\"text\":\""), end = chunk.find("\",\"logprobs\"");
        if (text != std::string::npos) outcome.texts[i] += chunk.substr(text + 8, end - text - 8);
        if (++seen == pieces) disturb();
      }
      took[i] = Clock::Real().Now() - begin;
      if (!absl::EndsWith(last, "data: [DONE]\n\n")) outcome.texts[i] = absl::StrCat("not whole: ", last);
    });
  }
  for (std::thread& client : clients) client.join();
  outcome.longest = *std::max_element(took.begin(), took.end());
  return outcome;
}

struct Row {
  const char* name;
  const char* worker;
  int signal;
  int pieces;  // After so many events of all streams; the first come while most prompts are in prefill.
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class LostWorkerTest : public testing::TestWithParam<Row> {};

TEST_P(LostWorkerTest, EveryStreamInFlightIsWholeAndAtMostTwoSecondsLate) {
  ProcessCluster cluster({});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  const Outcome normal = RunStreams(address, "First", 0, [] {});
  bool was_disturbed = false;
  const Outcome disturbed = RunStreams(address, "Second", GetParam().pieces, [&] {
    cluster.Signal(GetParam().worker, GetParam().signal);
    was_disturbed = true;
  });
  EXPECT_TRUE(was_disturbed);
  EXPECT_THAT(disturbed.texts, Each(AllOf(Not(IsEmpty()), Not(HasSubstr("not whole")))));
  cluster.Signal(GetParam().worker, SIGCONT);
  EXPECT_LT(disturbed.longest, normal.longest + kMostAdded);
  printf("longest stream: %s, undisturbed %s\n", absl::FormatDuration(disturbed.longest).c_str(),
         absl::FormatDuration(normal.longest).c_str());
  ASSERT_TRUE(cluster.AwaitReady());
  EXPECT_EQ(disturbed.texts, RunStreams(address, "Second", 0, [] {}).texts);
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

INSTANTIATE_TEST_SUITE_P(Rows, LostWorkerTest,
                         testing::Values(Row{"PrefillKilled", "prefill-0", SIGKILL, 1},
                                         Row{"PrefillStopped", "prefill-0", SIGSTOP, 1},
                                         Row{"DecodeKilledMidStream", "decode-0", SIGKILL, kStreams * 10},
                                         Row{"DecodeStoppedMidStream", "decode-0", SIGSTOP, kStreams * 10}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(LostClusterTest, ServesWithinASecondOfTheRegistrationOfItsWorkers) {
  ProcessCluster cluster({});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const std::string address = cluster.http_address();
  const char* const workers[] = {"prefill-0", "prefill-1", "decode-0", "decode-1"};
  for (const char* worker : workers) cluster.Signal(worker, SIGKILL);
  for (const char* worker : workers) ASSERT_TRUE(cluster.AwaitRestarts(worker, 1));
  const auto registered = [&] {
    int prefill = 0, decode = 0;
    const absl::StatusOr<ClusterSummary> status = cluster.client().Status();
    for (const WorkerSummary& worker : status.ok() ? status->workers : std::vector<WorkerSummary>()) {
      prefill += worker.role == "prefill";
      decode += worker.role == "decode";
    }
    return prefill > 0 && decode > 0;
  };
  const absl::Time killed = Clock::Real().Now();
  while (!registered()) {
    ASSERT_LT(Clock::Real().Now() - killed, absl::Seconds(30));
  }
  const absl::Time begin = Clock::Real().Now();
  const HttpAnswer answer = HttpClient(address).Ask("POST", "/v1/completions", Body("Other", 2));
  const absl::Duration took = Clock::Real().Now() - begin;
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_LT(took, absl::Seconds(1));
  printf("the first request after all workers were killed: %s after their registration\n",
         absl::FormatDuration(took).c_str());
}

}  // namespace
}  // namespace tandem
