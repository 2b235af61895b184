#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/attention_parts.h"

namespace tandem {

// A step as kernels see it; all pointers are the device's.
struct StepView {
  const int32_t* tokens = nullptr;           // [rows]; negative: sample -1 - token of the step before.
  const int32_t* positions = nullptr;        // [rows]
  const int32_t* sequence_of_row = nullptr;  // [rows]
  const SequenceView* sequences = nullptr;   // [num_sequences]
  const AttentionPart* parts = nullptr;      // [num_parts]
  // [num_logit_parts], of logit rows by themselves, which are numbered from 0; none where all rows are logit rows.
  const AttentionPart* logit_parts = nullptr;
  const int32_t* logit_rows = nullptr;  // [num_logit_rows]
  const int32_t* pages = nullptr;
  int rows = 0;
  int num_sequences = 0;
  int num_parts = 0;
  int num_logit_parts = 0;
  int num_logit_rows = 0;
};

// Where a layer's heads lie in the pages.
struct LayerPages {
  uint8_t* base = nullptr;  // Of the layer in page 0.
  int64_t page_bytes = 0;
  int64_t value_offset = 0;  // From a head's keys to its values.
  int64_t head_bytes = 0;
  int page_tokens = 0;
  bool is_float8 = false;  // E4M3, as it is; else bf16.
};

struct HeadShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // 32, 64 or 128.
};

// What is done to query and key heads before the scores.
struct HeadRotation {
  const __nv_bfloat16* q_norm = nullptr;  // [head_dim], or null: not normalised.
  const __nv_bfloat16* k_norm = nullptr;
  float epsilon = 0;
  const float2* turns = nullptr;  // [rows][head_dim / 2], cosine and sine.
  bool adjacent_pairs = false;    // RopeConfig::Pairing::kAdjacent.
};

}  // namespace tandem
