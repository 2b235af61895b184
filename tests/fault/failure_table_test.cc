// The failure table of docs/failure_model.md on real processes: each row is a test here, over each
// transport.
//
// "Pushing" is held still by a fault point: a link whose flushes never end gives the first token to
// the client, and no Commit to the decode worker.

#include <signal.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kNeverFlush[] = "delay_polls=2000000000";

// So many tokens last long enough to do something in the middle, also on a busy machine.
constexpr int kMidStream = 256;

// In which an answer that a fault interrupted is whole; sanitizers take four times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr absl::Duration kRecovery = absl::Seconds(40);
#else
constexpr absl::Duration kRecovery = absl::Seconds(10);
#endif

// About 60 tokens, and `max_tokens` more.
GenerateOptions LongRequest(int max_tokens = 64) {
  GenerateOptions options;
  options.text =
      "The history of the lighthouse begins in antiquity. Sailors who came home at night looked "
      "for fires on the hills, "
      "and towns built towers to lift the fires higher. The most famous of them stood in "
      "Alexandria.";
  options.sampling.max_tokens = max_tokens;
  options.sampling.ignore_eos = true;
  return options;
}

class FailureTable : public testing::TestWithParam<const char*> {
 protected:
  void StartCluster(ProcessCluster::Options options = {}) {
    options.transports = GetParam();
    cluster_ = std::make_unique<ProcessCluster>(options);
    ASSERT_TRUE(cluster_->AwaitReady()) << cluster_->Output();
  }
  void TearDown() override {
    if (cluster_ != nullptr && HasFailure()) std::cerr << cluster_->Output();
  }
  // prefill-0's links to `peer` (empty: all) never flush in its first life.
  ProcessCluster::Options StalledPushes(const std::string& peer = "") {
    ProcessCluster::Options options;
    options.faults = [peer](const std::string& process) -> std::string {
      if (process != "prefill-0") return "";
      return peer.empty() ? kNeverFlush : std::string(kNeverFlush) + ",peer=" + peer;
    };
    return options;
  }
  // What an undisturbed cluster answers; from a process pair without faults.
  std::vector<TokenId> Reference(int max_tokens = 64) {
    ProcessCluster::Options options;
    options.transports = GetParam();
    options.prefill_replicas = options.decode_replicas = 1;
    ProcessCluster cluster(options);
    EXPECT_TRUE(cluster.AwaitReady());
    ProcessCluster::Answer answer = cluster.Ask(LongRequest(max_tokens));
    EXPECT_THAT(answer.summary, IsOk());
    EXPECT_EQ(answer.tokens.size(), max_tokens);
    return answer.tokens;
  }
  // Asks, does `strike` when `at` tokens have come, and expects the undisturbed answer.
  ProcessCluster::Answer AskAndStrike(int at, const std::function<void()>& strike, int max_tokens = 64) {
    bool struck = false;
    ProcessCluster::Answer answer = cluster_->Ask(LongRequest(max_tokens), [&](int tokens) {
      if (tokens >= at && !std::exchange(struck, true)) strike();
      return true;
    });
    EXPECT_TRUE(struck);
    return answer;
  }
  void ExpectReferenceAfterStrike(int at, const std::function<void()>& strike, int max_tokens = 64) {
    std::vector<TokenId> reference = Reference(max_tokens);
    absl::Time begin = Clock::Real().Now();
    ProcessCluster::Answer answer = AskAndStrike(at, strike, max_tokens);
    ASSERT_THAT(answer.summary, IsOk());
    EXPECT_EQ(answer.tokens, reference);
    EXPECT_EQ(answer.finish_reason, "length");
    EXPECT_GE(answer.summary->retries, 1);
    EXPECT_LT(Clock::Real().Now() - begin, kRecovery);
  }

  std::unique_ptr<ProcessCluster> cluster_;
};

TEST_P(FailureTable, PrefillKilledBeforeCommit) {
  StartCluster(StalledPushes());
  ExpectReferenceAfterStrike(1, [&] { cluster_->Signal("prefill-0", SIGKILL); });
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, LastPrefillKilledBeforeCommitIsUnavailable) {
  ProcessCluster::Options options = StalledPushes();
  options.prefill_replicas = 1;
  options.router_extra = "  placement_timeout: 1ms\n";
  StartCluster(options);
  ProcessCluster::Answer answer = AskAndStrike(1, [&] { cluster_->Signal("prefill-0", SIGKILL); });
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, PrefillStoppedMidPushAndContinuedLater) {
  StartCluster(StalledPushes());
  ExpectReferenceAfterStrike(1, [&] { cluster_->Signal("prefill-0", SIGSTOP); });
  const bool revocable = std::string(GetParam()) != "shm";
  if (!revocable) {
    EXPECT_TRUE(cluster_->AwaitPagesInState("quarantined"));
  }
  cluster_->Signal("prefill-0", SIGCONT);
  if (!revocable) {
    // It cannot say that its writes are over: its link is refused, it ends, and its new life registers; only then the
    // pages are free.
    EXPECT_TRUE(cluster_->AwaitRestarts("prefill-0", 1));
    EXPECT_THAT(cluster_->Output(), HasSubstr("this process must restart"));
  }
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, PrefillStoppedMidPushWritesLateIntoPagesThatNobodyUses) {
  ProcessCluster::Options options;
  options.faults = [](const std::string& process) { return process == "prefill-0" ? "late_write_ms=1500" : ""; };
  StartCluster(options);
  std::vector<TokenId> reference = Reference();
  EXPECT_EQ(AskAndStrike(1, [&] { cluster_->Signal("prefill-0", SIGSTOP); }).tokens, reference);
  EXPECT_EQ(cluster_->Ask(LongRequest()).tokens, reference);
  // On waking it carries its write out, sees that its link is gone, and says that its writes are over.
  cluster_->Signal("prefill-0", SIGCONT);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
  EXPECT_EQ(cluster_->restarts("prefill-0"), 0);
  EXPECT_EQ(cluster_->Ask(LongRequest()).tokens, reference);
}

TEST_P(FailureTable, DecodeKilledBeforeAckGetsTheKvToAnotherDecode) {
  StartCluster(StalledPushes("decode-0"));
  ExpectReferenceAfterStrike(1, [&] { cluster_->Signal("decode-0", SIGKILL); });
  EXPECT_THAT(cluster_->Output(), HasSubstr("KV goes to another decode worker"));
  EXPECT_THAT(cluster_->Output(),
              testing::Not(HasSubstr("request starts again")));  // No second prefill.
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DecodeKilledMidStream) {
  StartCluster();
  ExpectReferenceAfterStrike(
      10, [&] { cluster_->Signal("decode-0", SIGKILL); }, kMidStream);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DecodeStoppedMidStream) {
  StartCluster();
  ExpectReferenceAfterStrike(
      10, [&] { cluster_->Signal("decode-0", SIGSTOP); }, kMidStream);
  cluster_->Signal("decode-0", SIGCONT);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, RouterKilled) {
  StartCluster();
  ProcessCluster::Answer answer = AskAndStrike(
      10, [&] { cluster_->Signal("router", SIGKILL); }, kMidStream);
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(cluster_->AwaitRestarts("router", 1));
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
  EXPECT_THAT(cluster_->Ask(LongRequest()).summary, IsOk());
}

TEST_P(FailureTable, ClientGoneWhileDecoding) {
  StartCluster();
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest(kMidStream), [](int tokens) { return tokens < 5; });
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, ClientGoneWhilePushing) {
  StartCluster(StalledPushes());
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest(), [](int) { return false; });
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kCancelled));
  // The push that never ends keeps the pages bound on both sides, and nothing else may.
  EXPECT_TRUE(cluster_->AwaitPagesInState("quarantined"));
  cluster_->Signal("prefill-0", SIGKILL);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, ClientGoneWhileQueuedOrComputing) {
  StartCluster();
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) {
    clients.emplace_back([&, i] {
      GenerateOptions options = LongRequest();
      options.request_id = "early-" + std::to_string(i);
      std::thread canceller([&] {
        // Retried until the router knows the request: then it is queued or computing.
        while (!cluster_->client().Cancel(options.request_id).ok()) {
        }
      });
      ProcessCluster::Answer answer = cluster_->Ask(options);
      canceller.join();
      EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kCancelled));
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, ClientGoneBetweenCommitAndAck) {
  ProcessCluster::Options options;
  options.faults = [](const std::string& process) { return process == "prefill-0" ? "drop_acks=1" : ""; };
  options.prefill_replicas = options.decode_replicas = 1;
  StartCluster(options);
  // The second token comes from decode: it has taken over, and prefill does not know.
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest(kMidStream), [](int tokens) { return tokens < 2; });
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, LinkLostBetweenTwoLiveWorkers) {
  ProcessCluster::Options options;
  options.faults = [](const std::string& process) {
    return process == "prefill-0" ? "fail_flush_every=1,peer=decode-0" : "";
  };
  StartCluster(options);
  std::vector<TokenId> reference = Reference();
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest());
  ASSERT_THAT(answer.summary, IsOk());
  EXPECT_EQ(answer.tokens, reference);
  EXPECT_GE(answer.summary->retries, 1);
  EXPECT_THAT(cluster_->Output(), HasSubstr("fault point: the flush failed"));
  EXPECT_EQ(cluster_->restarts("decode-0"), 0);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

// A prompt that takes much longer to prefill than `timeout`.
GenerateOptions SlowPrompt(int seed, absl::Duration timeout) {
  GenerateOptions options;
  std::vector<TokenId> prompt(1800);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(100 + (i * 37 + seed * 7919) % 40000);
  options.tokens = prompt;
  options.sampling.max_tokens = 2;
  options.timeout = timeout;
  return options;
}

TEST_P(FailureTable, DeadlinePassesWhileComputing) {
  StartCluster();
  ProcessCluster::Answer answer = cluster_->Ask(SlowPrompt(1, absl::Milliseconds(200)));
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DeadlinePassesWhileQueued) {
  ProcessCluster::Options options;
  options.prefill_replicas = options.decode_replicas = 1;
  options.limits = "{max_running_requests: 1}";
  StartCluster(options);
  std::vector<std::thread> clients;
  // One computes, the others wait behind it.
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&, i] {
      ProcessCluster::Answer answer = cluster_->Ask(SlowPrompt(i, absl::Milliseconds(200)));
      EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kDeadlineExceeded));
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DeadlinePassesWhileDecoding) {
  StartCluster();
  GenerateOptions options = LongRequest();
  options.sampling.max_tokens = 1500;
  options.timeout = absl::Milliseconds(700);
  ProcessCluster::Answer answer = cluster_->Ask(options);
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DeadlinePassesWhilePushing) {
  StartCluster(StalledPushes());
  GenerateOptions options = LongRequest();
  options.timeout = absl::Milliseconds(1500);
  ProcessCluster::Answer answer = cluster_->Ask(options);
  EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(answer.tokens.size(), 1);
  cluster_->Signal("prefill-0", SIGKILL);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DecodeShortOfPagesServesInTurn) {
  ProcessCluster::Options options;
  options.decode_replicas = 1;
  options.decode_kv_memory = "4 MiB";  // 11 pages: one such request at a time, and a little more.
  StartCluster(options);
  std::vector<TokenId> reference = Reference();
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      ProcessCluster::Answer answer = cluster_->Ask(LongRequest());
      EXPECT_THAT(answer.summary, IsOk());
      EXPECT_EQ(answer.tokens, reference);
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, DecodeThatNeverTakesTheKvFailsTheRequestAtTheHoldLimit) {
  ProcessCluster::Options options = StalledPushes();
  options.prefill_replicas = options.decode_replicas = 1;
  options.limits = "{kv_hold: 500ms}";
  StartCluster(options);
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest());
  EXPECT_THAT(answer.summary,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no decode worker took the KV")));
  cluster_->Signal("prefill-0", SIGKILL);
  EXPECT_TRUE(cluster_->AwaitReady());
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, ByteFlippedInAPushedPageIsRetried) {
  ProcessCluster::Options options;
  options.faults = [](const std::string& process) {
    return process == "prefill-0" ? "flip_byte_every=1,peer=decode-0" : "";
  };
  StartCluster(options);
  std::vector<TokenId> reference = Reference();
  ProcessCluster::Answer answer = cluster_->Ask(LongRequest());
  ASSERT_THAT(answer.summary, IsOk());
  EXPECT_EQ(answer.tokens, reference);
  EXPECT_GE(answer.summary->retries, 1);
  EXPECT_THAT(cluster_->Output(), HasSubstr("KV page arrived damaged"));
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, RestartAtTheSameAddressLinksByItself) {
  ProcessCluster::Options options;
  options.fixed_ports = true;
  options.prefill_replicas = options.decode_replicas = 1;
  StartCluster(options);
  for (const char* process : {"decode-0", "prefill-0", "decode-0"}) {
    const int restarts = cluster_->restarts(process);
    cluster_->Signal(process, SIGKILL);
    EXPECT_TRUE(cluster_->AwaitRestarts(process, restarts + 1));
    EXPECT_TRUE(cluster_->AwaitReady());
    EXPECT_THAT(cluster_->Ask(LongRequest()).summary, IsOk());
  }
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

TEST_P(FailureTable, ProcessesThatAreAskedToStopEndWell) {
  StartCluster();
  for (const char* process : {"prefill-0", "decode-0", "router"}) {
    cluster_->Signal(process, SIGTERM);
    EXPECT_TRUE(cluster_->AwaitOutput(std::string(process) + " | has left"));
  }
}

TEST_P(FailureTable, WorkersThatDrainLeaveWithoutAnAlarm) {
  StartCluster();
  EXPECT_THAT(cluster_->client().Drain("decode-1"), IsOk());
  cluster_->Signal("prefill-1", SIGTERM);
  for (const char* worker : {"decode-1", "prefill-1"}) {
    EXPECT_TRUE(cluster_->AwaitOutput(absl::StrCat("worker left worker=", worker)));
    EXPECT_TRUE(cluster_->AwaitOutput(absl::StrCat(worker, " | has left")));
  }
  EXPECT_THAT(cluster_->Output(), Not(HasSubstr("worker lost")));
  EXPECT_EQ(cluster_->Ask(LongRequest()).tokens, Reference());
}

TEST_P(FailureTable, PoolIsFreeAfterThreeHundredCancelledRequests) {
  StartCluster();
  for (int i = 0; i < 300; ++i) {
    const int stop_at = i % 4;
    ProcessCluster::Answer answer =
        cluster_->Ask(LongRequest(kMidStream), [&](int tokens) { return tokens < stop_at; });
    EXPECT_THAT(answer.summary, StatusIs(absl::StatusCode::kCancelled));
  }
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
  EXPECT_EQ(cluster_->Ask(LongRequest()).tokens, Reference());
}

TEST_P(FailureTable, PromptLargerThanAnyStepIsMovedInChunks) {
  StartCluster();
  GenerateOptions options;
  std::vector<TokenId> prompt(1200);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(100 + i * 37 % 40000);
  options.tokens = prompt;
  options.sampling.max_tokens = 8;
  options.sampling.ignore_eos = true;
  ProcessCluster::Answer split = cluster_->Ask(options);
  ASSERT_THAT(split.summary, IsOk());
  EXPECT_EQ(split.summary->prompt_tokens, 1200);
  ProcessCluster::Options aggregated;
  aggregated.prefill_replicas = 0;
  aggregated.decode_replicas = 1;
  ProcessCluster one(aggregated);
  ASSERT_TRUE(one.AwaitReady());
  EXPECT_EQ(one.Ask(options).tokens, split.tokens);
  EXPECT_TRUE(cluster_->AwaitAllPagesFree());
}

INSTANTIATE_TEST_SUITE_P(Transport, FailureTable, testing::Values("shm", "ucx", "ucx_staged"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem
