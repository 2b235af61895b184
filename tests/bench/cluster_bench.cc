// Clusters of real processes on this machine, measured from a client:
//   cluster_bench handover    gap between the first two tokens of 128-token prompts, less one
//   decode step cluster_bench split       the same four processes as 2 prefill + 2 decode and as 4
//   aggregated workers, open loop

#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "client/load_generator.h"
#include "client/load_report.h"
#include "common/clock.h"
#include "tests/support/process_cluster.h"

namespace tandem {
namespace {

void PrintRow(const std::string& name, const Distribution& ms) {
  printf("%-28s p50 %8.2f  p90 %8.2f  p99 %8.2f ms  (%zu values)\n", name.c_str(), ms.p50, ms.p90, ms.p99, ms.count);
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
    PrintRow(std::string(transport) + " hand-over gap", Describe(gap));
    PrintRow(std::string(transport) + " first push to Ack", Describe(transfer));
  }
  return 0;
}

// The cluster's router from this process.
class ClusterTarget final : public LoadTarget {
 public:
  explicit ClusterTarget(ProcessCluster& cluster) : cluster_(cluster) {}
  absl::Status Generate(const std::vector<TokenId>& prompt, int output_tokens,
                        const std::function<void(int tokens)>& on_tokens) override {
    GenerateOptions ask;
    ask.tokens = prompt;
    ask.sampling.max_tokens = output_tokens;
    ask.sampling.ignore_eos = true;
    return cluster_
        .Ask(ask,
             [&, seen = 0](int tokens) mutable {
               on_tokens(tokens - seen);
               seen = tokens;
               return true;
             })
        .summary.status();
  }

 private:
  ProcessCluster& cluster_;
};

// Requests at given times whatever the answers do; prompts of 32 to 512 tokens, 32 tokens of
// output.
LoadReport OpenLoop(ProcessCluster& cluster, double requests_per_second, int count) {
  std::mt19937 random(7);
  std::exponential_distribution<double> gap(requests_per_second);
  LoadPlan plan;
  absl::Duration due;
  for (int i = 0; i < count; ++i) {
    due += absl::Seconds(gap(random));
    plan.requests.push_back({.due = due, .prompt_tokens = 32 << (random() % 5), .output_tokens = 32, .seed = random()});
  }
  ClusterTarget target(cluster);
  LoadOptions options;
  options.vocabulary = 40'000;
  return SummariseLoad(RunLoad(
                           plan, options, target, Clock::Real(),
                           [](absl::Time until) { absl::SleepFor(until - Clock::Real().Now()); }, nullptr),
                       0, {});
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
      const LoadReport load = OpenLoop(cluster, rate, 80);
      const std::string name =
          std::string(split ? "2+2" : "4 aggregated") + ", " + std::to_string(static_cast<int>(rate)) + "/s";
      PrintRow(name + " TTFT", load.ttft);
      PrintRow(name + " ITL", load.itl);
      if (load.failed > 0) return 1;
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
