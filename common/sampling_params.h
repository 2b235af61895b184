#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/output_format.h"

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
  std::shared_ptr<const OutputFormat> format;  // Null: any. Shared by all legs and samples of a request.
};

// A token with its log probability under the model, before temperature and filters.
struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};

struct SampledToken {
  TokenId token = 0;
  bool valid = true;              // False: the model's logits were no numbers.
  std::optional<float> logprob;   // Set when logprobs were asked for.
  std::vector<TokenLogprob> top;  // Best first.
};

}  // namespace tandem
