// Speed of the CPU engine on SmolLM2-135M: prefill of 512 tokens, decode of 1 and 8 sequences.
// Tokens are counted, and prompts are random, so that no prefix cache helps. Two threads; compare
// with tests/bench/llama_cpp_bench.py in the same run.

#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <vector>

#include "engine/cpu/cpu_ops.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"

namespace tandem {
namespace {

EngineFixture& Fixture() {
  static EngineFixture fixture(SmolLm2Path(),
                               {.threads = 2, .kv_memory_bytes = int64_t{512} << 20, .max_step_tokens = 512});
  return fixture;
}

SequenceRequest RandomRequest(int prompt_tokens, int max_tokens) {
  static std::mt19937 random(1);
  static uint64_t next_id = 1;
  SequenceRequest request;
  request.id = RequestId(next_id++);
  for (int i = 0; i < prompt_tokens; ++i) request.tokens.push_back(static_cast<TokenId>(100 + random() % 40000));
  request.prompt_tokens = prompt_tokens;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

void Prefill(benchmark::State& state) {
  Engine& engine = Fixture().engine();
  for (auto _ : state) {
    if (!engine.Add(RandomRequest(static_cast<int>(state.range(0)), 1)).ok()) state.SkipWithError("not admitted");
    size_t events = 0;
    while (engine.HasWork()) events += engine.Step(nullptr).size();
    if (events != 1) state.SkipWithError("no token came");
  }
  state.counters["tokens_per_second"] =
      benchmark::Counter(static_cast<double>(state.range(0)), benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Prefill)->Arg(512)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);

void Decode(benchmark::State& state) {
  Engine& engine = Fixture().engine();
  const int batch = static_cast<int>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    for (int i = 0; i < batch; ++i) {
      if (!engine.Add(RandomRequest(8, 65)).ok()) state.SkipWithError("not admitted");
    }
    engine.Step(nullptr);  // All prompts, and their first tokens.
    state.ResumeTiming();
    size_t tokens = 0;
    while (engine.HasWork()) tokens += engine.Step(nullptr).size();
    if (tokens != 64u * batch) state.SkipWithError("tokens are missing");
  }
  state.counters["tokens_per_second"] = benchmark::Counter(64.0 * batch, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Decode)->Arg(1)->Arg(8)->Arg(32)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  benchmark::AddCustomContext("kernels", tandem::CpuKernelsName());
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
