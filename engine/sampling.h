#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace tandem {

// How the next token is chosen. Defaults: greedy, nothing filtered. Ranges are those of the proto.
struct SamplingParams {
  float temperature = 0;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;
  int max_tokens = 0;  // 0: up to the context length.
  int min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;
  std::optional<int> logprobs;
};

// A token with its log probability under the model, before temperature and filters.
struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};

struct SampledToken {
  TokenId token = 0;
  std::optional<float> logprob;   // Set when logprobs were asked for.
  std::vector<TokenLogprob> top;  // Best first.
};

// Everything that the choice of one token depends on. Nothing else does: not the batch, not the worker.
struct SampleInput {
  const SamplingParams* params = nullptr;
  absl::Span<const TokenId> prompt;  // For the repetition penalty.
  absl::Span<const TokenId> output;  // For all penalties; its length numbers the random draw.
  // Tokens that must not come yet (end of sequence before min_tokens).
  absl::Span<const TokenId> forbidden;
};

// Chooses a token from `logits` [vocabulary], which it may overwrite. Ties go to the lower id. With equal
// inputs the result is equal, bit for bit.
SampledToken SampleToken(absl::Span<float> logits, const SampleInput& input);

// A uniform number in [0, 1) that depends on the seed and the index only (SplitMix64).
double UniformDraw(uint64_t seed, uint64_t index);

}  // namespace tandem
