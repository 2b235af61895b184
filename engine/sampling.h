#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "common/ids.h"
#include "common/sampling_params.h"

namespace tandem {

// Everything that the choice of one token depends on. Nothing else does: not the batch, not the
// worker.
struct SampleInput {
  const SamplingParams* params = nullptr;
  absl::Span<const TokenId> prompt;  // For the repetition penalty.
  absl::Span<const TokenId> output;  // For all penalties; its length numbers the random draw.
  // Tokens that must not come yet (end of sequence before min_tokens).
  absl::Span<const TokenId> forbidden;
  // A bit for each token that may come, the lowest first; empty: all may. At least one may.
  absl::Span<const uint32_t> allowed;
};

// A temperature below this is greedy: logits divided by it may be infinite.
inline constexpr float kGreedyBelow = 1e-5f;

// Chooses a token from `logits` [vocabulary], which it may overwrite. Ties go to the lower id. With
// equal inputs the result is equal, bit for bit. Not valid unless all logits are finite.
SampledToken SampleToken(absl::Span<float> logits, const SampleInput& input);

// The token with its log probability in `logits` [vocabulary], and those of the `count` best.
SampledToken DescribeToken(absl::Span<const float> logits, TokenId token, int count);

// Whether earlier output changes the choice.
bool HasPenalties(const SamplingParams& params);

// A uniform number in [0, 1) that depends on the seed and the index only (SplitMix64).
double UniformDraw(uint64_t seed, uint64_t index);

}  // namespace tandem
