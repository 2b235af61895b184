#include "engine/sampling.h"

#include <cmath>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::SizeIs;

TokenId Choose(std::vector<float> logits, const SamplingParams& params, std::vector<TokenId> output = {},
               std::vector<TokenId> prompt = {}, std::vector<TokenId> forbidden = {}) {
  return SampleToken(absl::MakeSpan(logits), {&params, prompt, output, forbidden}).token;
}

// Shares of the tokens over many positions of one seed.
std::map<TokenId, double> Shares(const std::vector<float>& logits, const SamplingParams& params) {
  std::map<TokenId, double> shares;
  constexpr int kDraws = 20000;
  std::vector<TokenId> output;
  for (int i = 0; i < kDraws; ++i) {
    shares[Choose(logits, params, output)] += 1.0 / kDraws;
    output.push_back(0);
  }
  return shares;
}

TEST(SamplingTest, GreedyTakesTheBestAndTheLowerIdOfEquals) {
  EXPECT_EQ(Choose({1, 3, 2}, {}), 1);
  EXPECT_EQ(Choose({1, 3, 3}, {}), 1);
  std::vector<float> many(5000, 0.0f);
  many[4321] = 1;
  EXPECT_EQ(Choose(many, {}), 4321);
}

TEST(SamplingTest, TemperatureFollowsTheDistribution) {
  std::map<TokenId, double> shares = Shares({0, std::log(3.0f)}, {.temperature = 1});
  EXPECT_NEAR(shares[1], 0.75, 0.02);
  shares = Shares({0, std::log(3.0f)}, {.temperature = 0.5});
  EXPECT_NEAR(shares[1], 0.9, 0.02);
}

TEST(SamplingTest, LogitsThatAreNoNumbersGiveNoToken) {
  const float nan = std::nanf(""), infinity = INFINITY;
  for (float temperature : {0.0f, 1.0f}) {
    SamplingParams params = {.temperature = temperature};
    for (std::vector<float> logits : {std::vector<float>{nan, nan}, {1, nan, 3}, {infinity, 1}, {1, -infinity}}) {
      EXPECT_FALSE(SampleToken(absl::MakeSpan(logits), {.params = &params}).valid);
    }
    std::vector<float> good = {-3e38f, 0, 3e38f};
    EXPECT_TRUE(SampleToken(absl::MakeSpan(good), {.params = &params}).valid);
  }
}

TEST(SamplingTest, ATinyTemperatureIsGreedy) {
  EXPECT_THAT(Shares({1, 3, 2}, {.temperature = 1e-38f}),
              testing::ElementsAre(testing::Pair(1, testing::DoubleNear(1, 1e-6))));
}

TEST(SamplingTest, TopKKeepsK) { EXPECT_THAT(Shares({4, 3, 2, 1}, {.temperature = 5, .top_k = 2}), SizeIs(2)); }

TEST(SamplingTest, TopPKeepsTheSmallestSet) {
  std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  EXPECT_THAT(Shares(logits, {.temperature = 1, .top_p = 0.5}), SizeIs(1));
  EXPECT_THAT(Shares(logits, {.temperature = 1, .top_p = 0.6}), SizeIs(2));
  EXPECT_THAT(Shares(logits, {.temperature = 1, .top_p = 1}), SizeIs(3));
}

TEST(SamplingTest, MinPDropsTheUnlikely) {
  std::vector<float> logits = {std::log(0.6f), std::log(0.3f), std::log(0.1f)};
  EXPECT_THAT(Shares(logits, {.temperature = 1, .min_p = 0.4}), SizeIs(2));
  EXPECT_THAT(Shares(logits, {.temperature = 1, .min_p = 0.99}), SizeIs(1));
}

TEST(SamplingTest, PenaltiesCountOutputAndRepetitionCountsThePrompt) {
  EXPECT_EQ(Choose({2, 1.5}, {.presence_penalty = 1}, {0}), 1);
  EXPECT_EQ(Choose({2, 1.5}, {.presence_penalty = 1}, {}, {0}), 0);  // The prompt does not count.
  EXPECT_EQ(Choose({2, 1.5}, {.frequency_penalty = 0.2}, {0, 0}), 0);
  EXPECT_EQ(Choose({2, 1.5}, {.frequency_penalty = 0.2}, {0, 0, 0}), 1);
  EXPECT_EQ(Choose({2, 1.5}, {.repetition_penalty = 2}, {}, {0}), 1);
  EXPECT_EQ(Choose({-2, -3}, {.repetition_penalty = 2}, {}, {0}),
            1);  // Negative logits move away from 0.
}

TEST(SamplingTest, LogitBiasAndForbiddenTokens) {
  SamplingParams params;
  params.logit_bias = {{0, 5.0f}, {999, 1.0f}};  // An id outside of the vocabulary changes nothing.
  EXPECT_EQ(Choose({0, 3}, params), 0);
  EXPECT_EQ(Choose({9, 3}, {}, {}, {}, {0}), 1);
}

TEST(SamplingTest, SameSeedAndPositionGiveTheSameToken) {
  std::vector<float> logits(100);
  for (int i = 0; i < 100; ++i) logits[i] = static_cast<float>(i % 7);
  SamplingParams params{.temperature = 1, .seed = 42};
  std::vector<TokenId> output(17, 3);
  EXPECT_EQ(Choose(logits, params, output), Choose(logits, params, output));
  bool differs = false;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    params.seed = seed;
    differs |= Choose(logits, params, output) != Choose(logits, {.temperature = 1, .seed = 42}, output);
  }
  EXPECT_TRUE(differs);
}

TEST(SamplingTest, LogprobsAreOfTheModelBeforeFilters) {
  std::vector<float> logits = {std::log(0.7f), std::log(0.2f), std::log(0.1f)};
  SamplingParams params{.temperature = 3, .top_k = 1};
  params.logprobs = 2;
  SampledToken token = SampleToken(absl::MakeSpan(logits), {&params, {}, {}, {}});
  EXPECT_NEAR(*token.logprob, std::log(0.7), 1e-5);
  ASSERT_THAT(token.top, SizeIs(2));
  EXPECT_EQ(token.top[1].token, 1);
  EXPECT_NEAR(token.top[1].logprob, std::log(0.2), 1e-5);
}

TEST(SamplingTest, ATokenThatADeviceChoseIsDescribedAsOneChosenHere) {
  const std::vector<float> logits = {1, 4, 2, 3};
  const SamplingParams params{.logprobs = 3};
  std::vector<float> copy = logits;
  const SampledToken wanted = SampleToken(absl::MakeSpan(copy), {&params});
  const SampledToken got = DescribeToken(logits, 1, 3);
  EXPECT_EQ(got.token, wanted.token);
  EXPECT_EQ(got.logprob, wanted.logprob);
  ASSERT_THAT(got.top, SizeIs(3));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(got.top[i].token, wanted.top[i].token);
    EXPECT_EQ(got.top[i].logprob, wanted.top[i].logprob);
  }
  EXPECT_LT(*DescribeToken(logits, 0, 1).logprob, *wanted.logprob);
}

TEST(SamplingTest, OnlyAllowedTokensAreChosen) {
  std::vector<float> logits(40, 0.0f);
  logits[5] = 9, logits[33] = 8;
  const uint32_t mask[] = {1u << 7, 1u << 1};  // 7 and 33.
  for (float temperature : {0.0f, 1.0f}) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const SamplingParams params{.temperature = temperature, .seed = seed, .logprobs = 1};
      std::vector<float> copy = logits;
      const SampledToken token = SampleToken(absl::MakeSpan(copy), {.params = &params, .allowed = mask});
      if (temperature == 0) {
        EXPECT_EQ(token.token, 33);
      } else {
        EXPECT_TRUE(token.token == 33 || token.token == 7);
      }
      EXPECT_EQ(token.top[0].token, 5) << "log probabilities are the model's own";
    }
  }
}

TEST(SamplingTest, UniformDrawsAreUniform) {
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    double draw = UniformDraw(7, i);
    ASSERT_GE(draw, 0);
    ASSERT_LT(draw, 1);
    sum += draw;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
}

}  // namespace
}  // namespace tandem
