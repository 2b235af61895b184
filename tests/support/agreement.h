#pragma once

#include <vector>

#include "common/ids.h"
#include "tests/support/golden_file.h"

namespace tandem {

// How far scores are from a reference's.
struct Agreement {
  int steps = 0;
  int equal = 0;
  double largest_flipped_margin = 0;
  double delta_sum = 0;  // |log probability - reference| of the reference's five best.
  int deltas = 0;

  double mean_delta() const { return delta_sum / deltas; }
  Agreement& operator+=(const Agreement& other);
};

// Teacher-forced: every step sees the reference's tokens. margin and top5 of a golden prompt begin
// at `first_position` of the scored positions.
Agreement Compare(const std::vector<std::vector<float>>& scores, const GoldenPrompt& prompt, int first_position);

std::vector<TokenId> PromptAndContinuation(const GoldenPrompt& prompt);

}  // namespace tandem
