// Speed of the whole engine on one GPU, with the shape of the model in a folder (tests/gpu/make_checkpoint.py makes
// one): decode steps at several batch sizes, and prefill. Each beside its floor: (weight bytes + KV bytes read) over a
// bandwidth in TB/s, or operations over a rate in TFLOP/s, both measured elsewhere in the same call and given
// here.
//
//   gpu_engine_bench MODEL TB_PER_S TFLOP_PER_S [ranks=N] [decode] [prefill] [generate]
//
// With ranks=N the model is spread over GPUs 0 to N - 1, a process for each, and a floor is what one of them reads or
// computes; sums between ranks are none of it.
//
// `generate` prints, for three prompts, the prompt and 32 greedy tokens on a line each, for comparisons.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/engine_fixture.h"

namespace tandem {
namespace {

double SecondsNow() { return absl::ToDoubleSeconds(Clock::Real().Now() - absl::UnixEpoch()); }

class Bench {
 public:
  Bench(const std::string& model, double bandwidth, double rate, bool float8_kv, const Shard& shard,
        const std::string& group)
      : model_(model), bandwidth_(bandwidth), rate_(rate), float8_kv_(float8_kv), shard_(shard), group_(group) {}
  // Ends the ranks with their engine.
  void End() {
    fixture_.reset();
    if (ranks_ != nullptr && shard_.rank == 0) ranks_->SayFarewell();
    ranks_.reset();
  }

  void Decode() {
    if (!Make(8192, 128)) return;
    const ModelConfig& config = engine().model_config();
    for (const auto& [batch, output] : {std::pair{1, 256}, {8, 256}, {32, 256}, {128, 300}}) {
      constexpr int kContext = 1920;
      for (int i = 0; i < batch; ++i) Add(kContext, output);
      std::vector<double> at;
      while (engine().HasWork()) {
        const size_t tokens = engine().Step(nullptr).size();
        if (tokens == batch) at.push_back(SecondsNow());
      }
      std::vector<double> gaps;
      for (size_t i = 20; i + 2 < at.size(); ++i) gaps.push_back(1e3 * (at[i + 1] - at[i]));
      const double mean = 1e3 * (at[at.size() - 2] - at[20]) / static_cast<double>(at.size() - 22);
      std::sort(gaps.begin(), gaps.end());
      const double context = kContext + (20 + static_cast<double>(at.size())) / 2;
      const double kv = 2.0 * config.num_kv_heads * config.head_dim * (float8_kv_ ? 1 : 2) * config.num_layers;
      const double floor = (WeightBytes() + kv * context * batch) / shard_.size / bandwidth_ * 1e-9;
      printf(
          "decode batch %3d mean context %.0f: %.3f ms a step (p50 %.3f p99 %.3f), floor %.3f, ratio %.3f, %zu steps\n",
          batch, context, mean, gaps[gaps.size() / 2], gaps[gaps.size() * 99 / 100], floor, mean / floor, gaps.size());
    }
  }

  void Prefill() {
    for (int step : {8192, 2048}) {
      if (!Make(step, 32)) continue;
      const ModelConfig& config = engine().model_config();
      const double linear = 2.0 * LinearElements();
      for (const auto& [tokens, repeats] : {std::pair{128, 20}, {1024, 20}, {4096, 10}, {8192, 8}}) {
        std::vector<double> times;
        for (int i = 0; i < repeats; ++i) {
          Add(tokens, 1);
          const double begin = SecondsNow();
          while (engine().HasWork()) engine().Step(nullptr);
          times.push_back(1e3 * (SecondsNow() - begin));
        }
        std::sort(times.begin(), times.end());
        const double operations =
            linear * tokens + 2.0 * tokens * tokens * config.num_heads * config.head_dim * config.num_layers;
        const double best = operations / shard_.size / rate_ * 1e-9, median = times[times.size() / 2];
        printf("prefill %5d tokens, steps of %d: %.2f ms (%.2f-%.2f), %.0f TFLOP/s, %.3f of cuBLAS\n", tokens, step,
               median, times.front(), times.back(), operations / shard_.size / median * 1e-9, best / median);
      }
    }
  }

  void Generate() {
    if (!Make(2048, 8)) return;
    for (int tokens : {40, 300, 1500}) {
      std::vector<TokenId> prompt = RandomPrompt(tokens);
      std::string line;
      for (TokenId token : prompt) absl::StrAppend(&line, token, " ");
      absl::StrAppend(&line, "|");
      for (TokenId token : fixture_->Generate(prompt, {.max_tokens = 32, .ignore_eos = true})) {
        absl::StrAppend(&line, " ", token);
      }
      printf("generated %s\n", line.c_str());
    }
  }

 private:
  Engine& engine() { return fixture_->engine(); }
  // False: this rank has followed another one through all that was done with the engine.
  bool Make(int max_step_tokens, int max_running) {
    End();
    if (shard_.size > 1) {
      RankGroup::Options options;
      options.name = group_;
      options.rank = shard_.rank;
      options.size = shard_.size;
      ranks_ = OrExit(RankGroup::Join(options));
    }
    fixture_ = std::make_unique<EngineFixture>(model_, Engine::Options{.precision = Precision::kBf16,
                                                                       .gpu = shard_.rank,
                                                                       .kv_memory_bytes = int64_t{44} << 30,
                                                                       .float8_kv = float8_kv_,
                                                                       .max_step_tokens = max_step_tokens,
                                                                       .max_running = max_running,
                                                                       .run_ahead = true,
                                                                       .shard = shard_,
                                                                       .ranks = ranks_.get()});
    if (shard_.rank == 0) return true;
    if (const absl::Status status = engine().Follow(); !status.ok()) OrExit<int>(status);
    return false;
  }
  template <typename T>
  static T OrExit(absl::StatusOr<T> result) {
    if (result.ok()) return *std::move(result);
    fprintf(stderr, "%s\n", result.status().ToString().c_str());
    exit(1);
  }
  std::vector<TokenId> RandomPrompt(int tokens) {
    std::vector<TokenId> prompt;
    for (int i = 0; i < tokens; ++i) prompt.push_back(static_cast<TokenId>(random_() % 100000));
    return prompt;
  }
  void Add(int tokens, int output) {
    SequenceRequest request;
    request.id = RequestId(next_id_++);
    request.tokens = RandomPrompt(tokens);
    request.prompt_tokens = tokens;
    request.sampling.max_tokens = output;
    request.sampling.ignore_eos = true;
    if (absl::Status status = engine().Add(std::move(request)); !status.ok()) OrExit<int>(status);
  }
  // Of a token's products in the layers; the head is for one token only.
  double LinearElements() {
    const ModelConfig& c = engine().model_config();
    const double attention =
        static_cast<double>(c.hidden_size) * c.head_dim * (2.0 * c.num_heads + 2.0 * c.num_kv_heads);
    return c.num_layers * (attention + 3.0 * c.hidden_size * c.intermediate_size);
  }
  // That a step reads, as they are stored: all but the embedding table.
  double WeightBytes() {
    const auto checkpoint = OrExit(Checkpoint::Open(model_));
    double bytes = 0;
    for (const auto& [name, tensor] : checkpoint->tensors()) {
      if (name != "embedding" || checkpoint->config().tied_embeddings)
        bytes += static_cast<double>(tensor.data.size() + tensor.scales.data.size());
    }
    return bytes;
  }

  const std::string model_;
  const double bandwidth_, rate_;
  const bool float8_kv_;
  const Shard shard_;
  const std::string group_;
  std::unique_ptr<RankGroup> ranks_;
  std::unique_ptr<EngineFixture> fixture_;
  std::mt19937 random_{3};
  uint64_t next_id_ = 1;
};

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc < 4) {
    fprintf(stderr,
            "usage: gpu_engine_bench MODEL TB_PER_S TFLOP_PER_S [ranks=N] [kv=fp8] [decode] [prefill] [generate]\n");
    return 2;
  }
  std::set<std::string> parts(argv + 4, argv + argc);
  tandem::Shard shard;
  const std::string group = absl::StrCat("tandem-bench-", getpid());
  if (auto ranks = parts.lower_bound("ranks="); ranks != parts.end() && ranks->starts_with("ranks=")) {
    shard.size = atoi(ranks->substr(6).c_str());
    parts.erase(ranks);
  }
  const bool float8_kv = parts.erase("kv=fp8") > 0;
  // Before anything of CUDA is there, which does not survive a fork.
  for (int rank = 1; rank < shard.size && shard.rank == 0; ++rank) {
    if (fork() == 0) shard.rank = rank;
  }
  tandem::Bench bench(argv[1], atof(argv[2]), atof(argv[3]), float8_kv, shard, group);
  if (parts.empty()) parts = {"decode", "prefill", "generate"};
  if (parts.contains("decode")) bench.Decode();
  if (parts.contains("prefill")) bench.Prefill();
  if (parts.contains("generate")) bench.Generate();
  bench.End();
  while (shard.rank == 0 && wait(nullptr) > 0) continue;
  return 0;
}
