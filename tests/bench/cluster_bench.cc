// Clusters of real processes on this machine, measured from a client:
//   cluster_bench handover    gap between the first two tokens of 128-token prompts, less one
//   decode step cluster_bench split       the same four processes as 2 prefill + 2 decode and as 4
//   aggregated workers, open loop

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "tests/support/process_cluster.h"

namespace tandem {
namespace {

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
}

void PrintRow(const std::string& name, const std::vector<double>& ms) {
  printf("%-28s p50 %8.2f  p90 %8.2f  p99 %8.2f ms  (%zu values)\n", name.c_str(), Percentile(ms, .5),
         Percentile(ms, .9), Percentile(ms, .99), ms.size());
}

std::vector<TokenId> RandomPrompt(std::mt19937& random, int tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(static_cast<TokenId>(100 + random() % 40000));
  return prompt;
}

int Handover() {
  for (const char* transport : {"shm", "ucx"}) {
    ProcessCluster::Options options;
    options.transports = transport;
    options.checksums = false;
    options.prefill_replicas = options.decode_replicas = 1;
    ProcessCluster cluster(options);
    if (!cluster.AwaitReady()) return 1;
    std::mt19937 random(1);
    std::vector<double> gap, transfer;
    for (int i = 0; i < 120; ++i) {
      GenerateOptions ask;
      ask.tokens = RandomPrompt(random, 128);
      ask.sampling.max_tokens = 12;
      ask.sampling.ignore_eos = true;
      ProcessCluster::Answer answer = cluster.Ask(ask);
      if (!answer.summary.ok() || answer.tokens.size() != 12) return 1;
      if (i < 20) continue;  // Warm-up.
      gap.push_back(absl::ToDoubleMilliseconds(answer.summary->handover));
      transfer.push_back(absl::ToDoubleMilliseconds(answer.summary->transfer));
    }
    PrintRow(std::string(transport) + " hand-over gap", gap);
    PrintRow(std::string(transport) + " first push to Ack", transfer);
  }
  return 0;
}

struct Load {
  std::vector<double> ttft, itl;
  int failures = 0;
};

// Requests at given times whatever the answers do; prompts of 32 to 512 tokens, 32 tokens of
// output.
Load OpenLoop(ProcessCluster& cluster, double requests_per_second, int count) {
  Load load;
  std::mutex mu;
  std::mt19937 random(7);
  std::exponential_distribution<double> gap(requests_per_second);
  std::vector<std::thread> clients;
  absl::Time due = Clock::Real().Now();
  for (int i = 0; i < count; ++i) {
    due += absl::Seconds(gap(random));
    GenerateOptions ask;
    ask.tokens = RandomPrompt(random, 32 << (random() % 5));
    ask.sampling.max_tokens = 32;
    ask.sampling.ignore_eos = true;
    absl::Duration wait = due - Clock::Real().Now();
    if (wait > absl::ZeroDuration()) usleep(static_cast<useconds_t>(absl::ToInt64Microseconds(wait)));
    clients.emplace_back([&, ask, due] {
      absl::Time last = due;  // From when it should have been sent: no coordinated omission.
      std::vector<double> gaps;
      ProcessCluster::Answer answer = cluster.Ask(ask, [&](int) {
        absl::Time now = Clock::Real().Now();
        gaps.push_back(absl::ToDoubleMilliseconds(now - last));
        last = now;
        return true;
      });
      std::lock_guard<std::mutex> lock(mu);
      if (!answer.summary.ok() || answer.tokens.size() != 32) {
        ++load.failures;
        return;
      }
      load.ttft.push_back(gaps[0]);
      load.itl.insert(load.itl.end(), gaps.begin() + 1, gaps.end());
    });
  }
  for (std::thread& client : clients) client.join();
  return load;
}

int Split() {
  for (double rate : {1.0, 2.0, 4.0}) {
    for (bool split : {true, false}) {
      ProcessCluster::Options options;
      options.prefill_replicas = split ? 2 : 0;
      options.decode_replicas = split ? 2 : 4;
      options.checksums = false;
      options.prefill_kv_memory = options.decode_kv_memory = "192 MiB";
      ProcessCluster cluster(options);
      if (!cluster.AwaitReady()) return 1;
      OpenLoop(cluster, rate, 8);  // Warm-up.
      Load load = OpenLoop(cluster, rate, 80);
      const std::string name =
          std::string(split ? "2+2" : "4 aggregated") + ", " + std::to_string(static_cast<int>(rate)) + "/s";
      PrintRow(name + " TTFT", load.ttft);
      PrintRow(name + " ITL", load.itl);
      if (load.failures > 0) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "handover") return tandem::Handover();
  if (what == "split") return tandem::Split();
  fprintf(stderr, "usage: cluster_bench handover|split\n");
  return 2;
}
