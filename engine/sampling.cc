#include "engine/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace tandem {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Candidate {
  TokenId token;
  float logit;
  double probability;
};

bool Better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

bool AreFinite(absl::Span<const float> logits) {
  // By bits, so that the loop is vectorised: infinities and what is no number have all bits of the exponent set.
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t found = 0;
  for (float logit : logits) found |= (std::bit_cast<uint32_t>(logit) & kExponent) == kExponent;
  return found == 0;
}

TokenId ArgMax(absl::Span<const float> logits) {
  // Blocks keep the search for the value vectorised; the index is then looked for in one block.
  constexpr size_t kBlock = 1024;
  size_t best_block = 0;
  float best = kNever;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    size_t end = std::min(begin + kBlock, logits.size());
    float block_best = kNever;
    for (size_t i = begin; i < end; ++i) block_best = logits[i] > block_best ? logits[i] : block_best;
    if (block_best > best) {
      best = block_best;
      best_block = begin;
    }
  }
  for (size_t i = best_block; i < logits.size(); ++i) {
    if (logits[i] == best) return static_cast<TokenId>(i);
  }
  return 0;
}

double LogSumExp(absl::Span<const float> logits) {
  float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit - top));
  return top + std::log(sum);
}

std::vector<TokenLogprob> TopLogprobs(absl::Span<const float> logits, double log_sum, int count) {
  std::vector<TokenId> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  size_t keep = std::min<size_t>(count, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + keep, ids.end(),
                    [&](TokenId a, TokenId b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  std::vector<TokenLogprob> top;
  for (size_t i = 0; i < keep; ++i) {
    top.push_back({ids[i], static_cast<float>(logits[ids[i]] - log_sum)});
  }
  return top;
}

void ApplyPenalties(absl::Span<float> logits, const SampleInput& input) {
  const SamplingParams& params = *input.params;
  absl::flat_hash_map<TokenId, int> counts;  // Occurrences in the output; 0: in the prompt only.
  for (TokenId token : input.prompt) counts.emplace(token, 0);
  for (TokenId token : input.output) ++counts[token];
  for (const auto& [token, count] : counts) {
    if (token < 0 || token >= logits.size()) continue;
    float& logit = logits[token];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count > 0) logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(count);
  }
}

// The candidates that top-k, top-p and min-p leave, best first, with probabilities that sum to 1.
std::vector<Candidate> Filter(absl::Span<const float> logits, const SamplingParams& params) {
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != kNever) candidates.push_back({static_cast<TokenId>(i), logits[i] / params.temperature, 0});
  }
  if (params.top_k > 0 && params.top_k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + params.top_k, candidates.end(), Better);
    candidates.resize(params.top_k);
  }
  std::sort(candidates.begin(), candidates.end(), Better);
  double sum = 0;
  for (Candidate& candidate : candidates) {
    candidate.probability = std::exp(static_cast<double>(candidate.logit - candidates[0].logit));
    sum += candidate.probability;
  }
  double floor = params.min_p * candidates[0].probability;
  double kept = 0;
  size_t count = 0;
  while (count < candidates.size() && (count == 0 || candidates[count].probability >= floor)) {
    kept += candidates[count++].probability;
    if (kept >= params.top_p * sum) break;
  }
  candidates.resize(count);
  for (Candidate& candidate : candidates) candidate.probability /= kept;
  return candidates;
}

}  // namespace

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
}

double UniformDraw(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

SampledToken DescribeToken(absl::Span<const float> logits, TokenId token, int count) {
  const double log_sum = LogSumExp(logits);
  SampledToken result{.token = token};
  result.logprob = static_cast<float>(logits[token] - log_sum);
  result.top = TopLogprobs(logits, log_sum, count);
  return result;
}

SampledToken SampleToken(absl::Span<float> logits, const SampleInput& input) {
  const SamplingParams& params = *input.params;
  SampledToken result;
  if (!AreFinite(logits)) {
    result.valid = false;
    return result;
  }
  double log_sum = 0;
  std::vector<float> raw;
  if (params.logprobs.has_value()) {
    log_sum = LogSumExp(logits);
    result.top = TopLogprobs(logits, log_sum, *params.logprobs);
    raw.assign(logits.begin(), logits.end());
  }
  if (HasPenalties(params)) ApplyPenalties(logits, input);
  for (const auto& [token, bias] : params.logit_bias) {
    if (token >= 0 && token < logits.size()) logits[token] += bias;
  }
  for (TokenId token : input.forbidden) {
    if (token >= 0 && token < logits.size()) logits[token] = kNever;
  }
  if (!input.allowed.empty()) {
    for (size_t i = 0; i < logits.size(); ++i) {
      if ((input.allowed[i / 32] >> (i % 32) & 1) == 0) logits[i] = kNever;
    }
  }
  if (params.temperature < kGreedyBelow) {
    result.token = ArgMax(logits);
  } else {
    std::vector<Candidate> candidates = Filter(logits, params);
    double draw = UniformDraw(params.seed, input.output.size());
    result.token = candidates.back().token;  // Rounding may leave the sum just under 1.
    for (const Candidate& candidate : candidates) {
      draw -= candidate.probability;
      if (draw < 0) {
        result.token = candidate.token;
        break;
      }
    }
  }
  if (params.logprobs.has_value()) result.logprob = static_cast<float>(raw[result.token] - log_sum);
  return result;
}

}  // namespace tandem
