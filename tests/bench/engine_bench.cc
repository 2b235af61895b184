// Speed of the CPU engine on SmolLM2-135M: prefill of 512 tokens, decode of 1, 8 and 32 sequences, and what answers of
// a given format cost. Tokens are counted, and prompts are random, so that no prefix cache helps. Two threads; compare
// with tests/bench/llama_cpp_bench.py in the same run.

#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <vector>

#include "engine/constraint/token_constraint.h"
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

// Constrained decoding: reading the vocabulary, once for each worker; a schema, once for each request; and which tokens
// may come next, for each token of an answer.
std::unique_ptr<ConstraintCompiler> NewCompiler() {
  auto checkpoint = Checkpoint::Open(SmolLm2Path());
  return *ConstraintCompiler::Create(**(*checkpoint)->LoadTokenizer(), (*checkpoint)->config());
}

const OutputFormat& PersonSchema() {
  static const OutputFormat format{OutputFormat::Kind::kJsonSchema,
                                   R"({"type": "object", "required": ["name", "age", "tags"], "properties": {
                                        "name": {"type": "string", "maxLength": 40},
                                        "age": {"type": "integer", "minimum": 3, "maximum": 150},
                                        "tags": {"type": "array", "items": {"enum": ["red", "green"]}}},
                                      "additionalProperties": false})"};
  return format;
}

void FormatVocabulary(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(NewCompiler());
}
BENCHMARK(FormatVocabulary)->Unit(benchmark::kMillisecond)->UseRealTime();

void FormatCompile(benchmark::State& state) {
  const auto compiler = NewCompiler();
  for (auto _ : state) {
    if (!compiler->Compile(PersonSchema()).ok()) state.SkipWithError("not compiled");
  }
}
BENCHMARK(FormatCompile)->Unit(benchmark::kMicrosecond)->UseRealTime();

void FormatToken(benchmark::State& state) {
  const auto compiler = NewCompiler();
  auto tokenizer = *(*Checkpoint::Open(SmolLm2Path()))->LoadTokenizer();
  const std::vector<TokenId> answer =
      *tokenizer->Encode(R"({"name": "Ada Lovelace", "age": 36, "tags": ["red", "green"]})", false);
  for (auto _ : state) {
    state.PauseTiming();
    auto constraint = *compiler->Compile(PersonSchema());
    state.ResumeTiming();
    for (TokenId token : answer) {
      const auto mask = constraint->Allowed();
      if (!mask.ok() || ((*mask)[token / 32] >> (token % 32) & 1) == 0) state.SkipWithError("not allowed");
      if (!constraint->Accept({token}).ok()) state.SkipWithError("not accepted");
    }
  }
  state.counters["seconds_per_token"] = benchmark::Counter(
      static_cast<double>(answer.size()), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(FormatToken)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  benchmark::AddCustomContext("kernels", tandem::CpuKernelsName());
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
