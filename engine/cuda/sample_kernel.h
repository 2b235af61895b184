#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// How one row's token is chosen; as SamplingParams, without what looks at other tokens.
struct SampleSettings {
  float temperature = 0;  // 0: greedy.
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;
  uint64_t seed = 0;
  uint64_t index = 0;  // Of the draw.
};

// Chooses a token for each row of logits [rows][columns]. Filters in the order of SampleToken: top-k (which keeps all
// that equal its last), top-p of what that leaves, min-p. The draw depends on seed, index and the kept logits only.
// `tokens` [rows] are for the next step's Embed; `results` [rows] for the host: -1 where logits are not finite. Those
// and `settings`, which no kernel writes, may be pinned memory of the host.
cudaError_t LaunchSample(const float* logits, int rows, int columns, const SampleSettings* settings, int32_t* tokens,
                         int32_t* results, cudaStream_t stream);

// Makes tokens that may not come so unlikely that none is chosen beside one that may: in row rows[i] of `logits`
// [][columns], those whose bit in masks[i] [mask_words], the lowest first, is not set. Logits that are not finite stay.
// `rows` and `masks` [count] may be pinned memory of the host.
cudaError_t LaunchMask(float* logits, int columns, const int32_t* rows, const uint32_t* masks, int mask_words,
                       int count, cudaStream_t stream);

}  // namespace tandem
