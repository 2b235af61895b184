// The engine against reference tokens and log probabilities; tests/golden/README.md says whose.

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/support/agreement.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

TEST(SmolLm2Golden, TokenizesAllPromptsAsTheReference) {
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile("smollm2_golden.jsonl"));
  ASSERT_EQ(prompts.size(), 24);
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(SmolLm2Path()));
  ASSERT_OK_AND_ASSIGN(auto tokenizer, checkpoint->LoadTokenizer());
  for (const GoldenPrompt& prompt : prompts) {
    SCOPED_TRACE(prompt.name);
    EXPECT_THAT(tokenizer->Encode(prompt.text), IsOkAndHolds(prompt.ids));
    EXPECT_EQ(tokenizer->Decode(prompt.ids, /*with_special=*/true), prompt.text);
  }
}

TEST(SmolLm2Golden, FullPrecisionGreedyEqualsTheReferenceOnEveryStep) {
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile("smollm2_golden.jsonl"));
  EngineFixture fixture(SmolLm2Path(), {.precision = Precision::kFull, .threads = 2});
  int steps = 0;
  for (const GoldenPrompt& prompt : prompts) {
    SCOPED_TRACE(prompt.name);
    std::vector<TokenId> output = fixture.Generate(prompt.ids, {.max_tokens = 48, .ignore_eos = true});
    EXPECT_EQ(output, prompt.continuation);
    steps += static_cast<int>(output.size());
  }
  EXPECT_EQ(steps, 1152);
}

TEST(SmolLm2Golden, QuantisedPathStaysCloseToTheReference) {
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile("smollm2_golden.jsonl"));
  EngineFixture fixture(SmolLm2Path(), {.threads = 2});
  Agreement all;
  for (const GoldenPrompt& prompt : prompts) {
    ASSERT_OK_AND_ASSIGN(auto scores, fixture.engine().ScoreAll(PromptAndContinuation(prompt)));
    Agreement agreement = Compare(scores, prompt, static_cast<int>(prompt.ids.size()) - 1);
    EXPECT_LT(agreement.largest_flipped_margin, 0.5) << prompt.name;
    all += agreement;
  }
  EXPECT_EQ(all.steps, 1152);
  EXPECT_GE(all.equal, 0.97 * all.steps);
  EXPECT_LE(all.mean_delta(), 0.12);
  RecordProperty("equal_steps", all.equal);
  printf("equal %d of %d, mean top-5 |delta logprob| %.4f\n", all.equal, all.steps, all.mean_delta());
}

TEST(SmolLm2Golden, KvOfFloat8StaysCloseToTheReference) {
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile("smollm2_golden.jsonl"));
  EngineFixture fixture(SmolLm2Path(), {.precision = Precision::kFull, .threads = 2, .float8_kv = true});
  Agreement all;
  for (const GoldenPrompt& prompt : prompts) {
    ASSERT_OK_AND_ASSIGN(auto scores, fixture.engine().ScoreAll(PromptAndContinuation(prompt)));
    all += Compare(scores, prompt, static_cast<int>(prompt.ids.size()) - 1);
  }
  printf("equal %d of %d, largest margin turned %.3f, mean top-5 |delta logprob| %.4f\n", all.equal, all.steps,
         all.largest_flipped_margin, all.mean_delta());
  EXPECT_EQ(all.steps, 1152);
  EXPECT_GE(all.equal, 0.96 * all.steps);
  EXPECT_LE(all.mean_delta(), 0.18);
  EXPECT_GT(all.mean_delta(), 1e-3);  // It is not f32.
}

class TinyGolden : public testing::TestWithParam<const char*> {};

TEST_P(TinyGolden, FullPrecisionEqualsTheReferenceOnEveryStep) {
  const std::string folder = std::string("tiny/") + GetParam();
  ASSERT_OK_AND_ASSIGN(auto prompts, ReadGoldenFile(folder + "/golden.jsonl"));
  EngineFixture fixture(SourcePath("tests/golden/" + folder), {.precision = Precision::kFull});
  for (const GoldenPrompt& prompt : prompts) {
    SCOPED_TRACE(prompt.name);
    EXPECT_EQ(
        fixture.Generate(prompt.ids, {.max_tokens = static_cast<int>(prompt.continuation.size()), .ignore_eos = true}),
        prompt.continuation);
    ASSERT_OK_AND_ASSIGN(auto scores, fixture.engine().ScoreAll(PromptAndContinuation(prompt)));
    Agreement agreement = Compare(scores, prompt, 0);
    EXPECT_EQ(agreement.equal, agreement.steps);
    EXPECT_GE(agreement.steps, prompt.continuation.size());
    EXPECT_LT(agreement.mean_delta(), 1e-3);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, TinyGolden, testing::Values("llama3_f32", "qwen3_bf16", "qwen3moe_bf16"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem
