#include <cstdio>

#include "absl/strings/str_cat.h"
#include "tests/bench/kvbench/rig.h"

namespace tandem {
namespace {

void Report(const Rig& rig, const PageSet& set, const std::string& method, const Rig::Times& times) {
  printf(
      "{\"latency\": \"call to flag seen by the peer's host\", \"pages\": %lld, \"page_bytes\": %lld, \"method\": "
      "\"%s\", \"beside\": \"%s\", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"post_us\": %.1f}\n",
      static_cast<long long>(set.pages), static_cast<long long>(set.page_bytes), method.c_str(), rig.beside,
      Percentile(times.seen, 0.5), Percentile(times.seen, 0.9), Percentile(times.seen, 0.99),
      Percentile(times.posted, 0.5));
  fflush(stdout);
}

}  // namespace

std::vector<std::optional<CopyChoice>> LatencyChoices() {
  return {Kernel(8), Kernel(16), Kernel(32), kEngine, std::nullopt};
}

// From the call until the peer's host has seen the flag.
void MeasureLatency(Rig& rig, const PageSet& set, const std::optional<CopyChoice>& choice) {
  const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
  SharedWords& words = rig.peer->words();
  auto* flag = reinterpret_cast<uint32_t*>(&words.flag);
  OrExit(rig.peer->BeginWatch(rig.last_flag + 1, kLatencyRounds));
  Report(rig, set, ChoiceName(choice), rig.TimeEach([&](uint32_t value) { rig.Push(runs, choice, flag, value); }));
}

void MeasurePullLatency(Rig& rig, const PageSet& set, int blocks) {
  OrExit(rig.peer->BeginPull(rig.exported->description(), set, rig.last_flag + 1, kLatencyRounds, blocks));
  Report(rig, set, blocks == 0 ? "pull by copy engine" : absl::StrCat("pull by kernel, ", blocks, " blocks"),
         rig.TimeEach([&](uint32_t value) { rig.peer->words().doorbell.store(value, std::memory_order_release); }));
}

void RunLatencies(Rig& rig) {
  for (const PageSet& set : {kOnePage, kTokens128}) {
    for (const auto& choice : LatencyChoices()) MeasureLatency(rig, set, choice);
    for (int blocks : {0, 16, 32}) MeasurePullLatency(rig, set, blocks);
  }
}

}  // namespace tandem
