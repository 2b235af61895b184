#include "tests/support/agreement.h"

#include <algorithm>
#include <cmath>

namespace tandem {

Agreement& Agreement::operator+=(const Agreement& other) {
  steps += other.steps;
  equal += other.equal;
  largest_flipped_margin = std::max(largest_flipped_margin, other.largest_flipped_margin);
  delta_sum += other.delta_sum;
  deltas += other.deltas;
  return *this;
}

Agreement Compare(const std::vector<std::vector<float>>& scores, const GoldenPrompt& prompt, int first_position) {
  Agreement agreement;
  for (size_t i = 0; i < prompt.top5.size() && first_position + i < scores.size(); ++i) {
    const std::vector<float>& row = scores[first_position + i];
    TokenId best = static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
    ++agreement.steps;
    if (best == prompt.top5[i][0].first) {
      ++agreement.equal;
    } else {
      agreement.largest_flipped_margin = std::max(agreement.largest_flipped_margin, prompt.margin[i]);
    }
    for (const auto& [token, logprob] : prompt.top5[i]) {
      agreement.delta_sum += std::abs(row[token] - logprob);
      ++agreement.deltas;
    }
  }
  return agreement;
}

std::vector<TokenId> PromptAndContinuation(const GoldenPrompt& prompt) {
  std::vector<TokenId> tokens = prompt.ids;
  tokens.insert(tokens.end(), prompt.continuation.begin(), prompt.continuation.end());
  return tokens;
}

}  // namespace tandem
