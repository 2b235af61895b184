// What one placement costs in a large cluster: 500 prefill and 500 decode workers, all linked, with a million cached
// pages. docs/performance.md says how it is run.

#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/page_hash.h"
#include "router/placement.h"

namespace tandem {
namespace {

constexpr int kWorkersOfARole = 500, kPagesOfAWorker = 1000, kPageTokens = 16;
constexpr int kPromptPages = 64, kPrompts = 256;

// Prompts that begin alike for the first quarter, as those of one application do.
std::vector<std::vector<TokenId>> MakePrompts() {
  std::mt19937 random(1);
  std::vector<TokenId> beginning(kPromptPages / 4 * kPageTokens);
  for (TokenId& token : beginning) token = static_cast<TokenId>(random() % 100'000);
  std::vector<std::vector<TokenId>> prompts(kPrompts, beginning);
  for (std::vector<TokenId>& prompt : prompts) {
    while (prompt.size() < kPromptPages * kPageTokens) prompt.push_back(static_cast<TokenId>(random() % 100'000));
  }
  return prompts;
}

void AddWorker(ClusterView& view, int number, Role role, const std::vector<std::vector<TokenId>>& prompts,
               int holders) {
  const Incarnation incarnation(static_cast<uint64_t>(number) + 1);
  view.Register({.worker_id = absl::StrCat(RoleName(role), "-", number),
                 .incarnation = incarnation,
                 .role = role,
                 .total_pages = 2 * kPagesOfAWorker,
                 .page_tokens = kPageTokens,
                 .max_context_tokens = 1 << 20,
                 .page_bytes = 1 << 20},
                absl::UnixEpoch());
  view.SetSessionUp(incarnation, true);
  WorkerHeartbeat heartbeat{.running_requests = number % 7, .free_pages = kPagesOfAWorker, .sequence = 1};
  if (number % (2 * kWorkersOfARole / holders) == 0) {
    heartbeat.stored_hashes = ChainedPageHashes(prompts[number % kPrompts], kPageTokens);
  }
  std::mt19937_64 random(static_cast<uint64_t>(number));
  while (heartbeat.stored_hashes.size() < kPagesOfAWorker) heartbeat.stored_hashes.push_back(random());
  if (role == Role::kPrefill) {
    for (int decode = 0; decode < kWorkersOfARole; ++decode) {
      heartbeat.links.push_back({.peer = Incarnation(static_cast<uint64_t>(kWorkersOfARole + decode) + 1),
                                 .up = true,
                                 .gigabytes_per_second = 40,
                                 .latency_us = 5});
    }
  }
  view.OnHeartbeat(incarnation, heartbeat, absl::UnixEpoch());
}

// The argument: how many workers hold the prompts' common beginning.
void BM_Place(benchmark::State& state) {
  const std::vector<std::vector<TokenId>> prompts = MakePrompts();
  ClusterView view;
  for (int i = 0; i < kWorkersOfARole; ++i)
    AddWorker(view, i, Role::kPrefill, prompts, static_cast<int>(state.range(0)));
  for (int i = 0; i < kWorkersOfARole; ++i) {
    AddWorker(view, kWorkersOfARole + i, Role::kDecode, prompts, static_cast<int>(state.range(0)));
  }
  uint64_t next = 0;
  int64_t hits = 0;
  for (auto _ : state) {
    absl::StatusOr<Placement> placement = Place(
        view,
        {.tokens = prompts[next % kPrompts], .conditional_prefill_tokens = 256, .random = next * 0x9E3779B97F4A7C15});
    if (!placement.ok()) state.SkipWithError(placement.status().ToString().c_str());
    hits += placement->prefill_hit_tokens;
    ++next;
  }
  state.counters["hit_tokens"] = static_cast<double>(hits) / static_cast<double>(next);
}
BENCHMARK(BM_Place)->Arg(10)->Arg(100)->Arg(1000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace tandem

BENCHMARK_MAIN();
