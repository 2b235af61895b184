// The engine on a GPU against references, and when the GPU fails.

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/cuda/cuda_check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/support/agreement.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

Engine::Options OnGpu() { return {.precision = Precision::kBf16, .gpu = 0, .run_ahead = true}; }

class GpuEngineTest : public testing::Test {
 protected:
  void SetUp() override { TANDEM_NEEDS_GPU(gpus); }
};

class GpuGoldenTest : public GpuEngineTest, public testing::WithParamInterface<const char*> {};

// Weights, activations and KV are rounded to bf16, whose steps are 2^-8: no token whose margin over the second best is
// clear changes, and log probabilities stay near. With experts a rounding may send a token to another one, and what
// follows jumps.
TEST_P(GpuGoldenTest, Bf16StaysCloseToTheReference) {
  const std::string folder = std::string("tiny/") + GetParam();
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile(folder + "/golden.jsonl"));
  EngineFixture fixture(SourcePath("tests/golden/" + folder), OnGpu());
  const bool has_experts = fixture.engine().model_config().moe.num_experts > 0;
  Agreement all;
  for (const GoldenPrompt& prompt : prompts) {
    ASSERT_OK_AND_ASSIGN(auto scores, fixture.engine().ScoreAll(PromptAndContinuation(prompt)));
    const Agreement agreement = Compare(scores, prompt, 0);
    if (!has_experts) {
      EXPECT_LT(agreement.largest_flipped_margin, 0.1) << prompt.name;
    }
    all += agreement;
  }
  EXPECT_GT(all.steps, 0);
  // Of random experts: one that is chosen otherwise changes what follows.
  EXPECT_GE(all.equal, (has_experts ? 0.93 : 0.95) * all.steps);
  EXPECT_LE(all.mean_delta(), has_experts ? 0.1 : 0.04);
  printf("%s: equal %d of %d, mean top-5 |delta logprob| %.4f\n", GetParam(), all.equal, all.steps, all.mean_delta());
}

// What FP8 adds to the above: its steps are 2^-3 of a value.
TEST_P(GpuGoldenTest, KvOfFloat8StaysNearTheReference) {
  const std::string folder = std::string("tiny/") + GetParam();
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile(folder + "/golden.jsonl"));
  Engine::Options options = OnGpu();
  options.float8_kv = true;
  EngineFixture fixture(SourcePath("tests/golden/" + folder), options);
  Agreement all;
  for (const GoldenPrompt& prompt : prompts) {
    ASSERT_OK_AND_ASSIGN(auto scores, fixture.engine().ScoreAll(PromptAndContinuation(prompt)));
    all += Compare(scores, prompt, 0);
  }
  EXPECT_GT(all.steps, 0);
  EXPECT_GE(all.equal, 0.85 * all.steps);
  EXPECT_LE(all.mean_delta(), fixture.engine().model_config().moe.num_experts > 0 ? 0.3 : 0.2);
  printf("%s, FP8 KV: equal %d of %d, mean top-5 |delta logprob| %.4f\n", GetParam(), all.equal, all.steps,
         all.mean_delta());
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GpuGoldenTest, testing::Values("llama3_f32", "qwen3_bf16", "qwen3moe_bf16"),
                         [](const auto& info) { return std::string(info.param); });

// Sampling that the host does, and that the device does, beside one another.
TEST_F(GpuEngineTest, RequestsThatTheHostSamplesChangeNoOthers) {
  EngineFixture fixture(SourcePath("tests/golden/tiny/llama3_f32"), OnGpu());
  std::vector<TokenId> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back(2 + i * 7 % 300);
  const SamplingParams drawn{.temperature = 1, .top_k = 40, .seed = 5, .max_tokens = 24, .ignore_eos = true};
  const std::vector<TokenId> alone = fixture.Generate(prompt, drawn);
  SequenceRequest request;
  request.tokens = prompt;
  request.prompt_tokens = 40;
  request.id = RequestId(1);
  request.sampling = drawn;
  ASSERT_THAT(fixture.engine().Add(request), IsOk());
  request.id = RequestId(2);
  request.sampling.logprobs = 3;
  ASSERT_THAT(fixture.engine().Add(request), IsOk());
  int with_logprobs = 0;
  std::vector<TokenId> beside;
  for (const SequenceEvent& event : fixture.RunToEnd()) {
    if (event.id == RequestId(1)) beside.push_back(event.token->token);
    if (event.id == RequestId(2)) with_logprobs += event.token->top.size() == 3 && event.token->logprob.has_value();
  }
  EXPECT_EQ(with_logprobs, 24);
  // Two rows are summed in another order than one: a draw may fall on another token, but the first ones do not.
  ASSERT_EQ(beside.size(), alone.size());
  EXPECT_TRUE(std::equal(beside.begin(), beside.begin() + 4, alone.begin()));
}

TEST_F(GpuEngineTest, RefusesWhatDoesNotFitWithFigures) {
  Engine::Options options = OnGpu();
  options.kv_memory_bytes = int64_t{1} << 50;
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  EXPECT_THAT(Engine::Create(std::move(checkpoint), options, Clock::Real()).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("and kv_memory 1024 TiB")));
  options = OnGpu();
  options.gpu = 1000;
  ASSERT_OK_AND_ASSIGN(checkpoint, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  EXPECT_THAT(Engine::Create(std::move(checkpoint), options, Clock::Real()).status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("there is no GPU 1000 here")));
}

// KV memory that is none: the first step writes where nothing is mapped.
void RunWithoutKvMemory() {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32"));
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(*std::move(checkpoint), OnGpu(), Clock::Real());
  (*engine)->SetKvMemory(reinterpret_cast<uint8_t*>(0x1000));
  SequenceRequest request;
  request.id = RequestId(1);
  request.tokens = {5, 6, 7};
  request.prompt_tokens = 3;
  request.sampling.max_tokens = 4;
  if ((*engine)->Add(request).ok()) {
    while ((*engine)->HasWork()) (*engine)->Step(nullptr);
  }
  exit(0);
}

using GpuEngineDeathTest = GpuEngineTest;

TEST_F(GpuEngineDeathTest, AFailureOfTheGpuEndsTheProcessAndNamesTheCall) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunWithoutKvMemory(), testing::ExitedWithCode(kGpuFailedExitCode),
              "the GPU failed, and this worker ends.*an illegal memory access");
}

}  // namespace
}  // namespace tandem
