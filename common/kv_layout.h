#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/ids.h"

namespace tandem {

// Shape of one rank's KV pool, as both ends of a link must know it:
// [num_pages][num_layers][num_planes][own heads][page_tokens][head_dim].
//
// A page holds all layers of its tokens, so that a layer group of a page is one run of bytes, and a
// head of a layer is one, too. Heads are split over tp_size ranks; with fewer heads than ranks (an
// MLA latent has one) they are replicated, each rank holding one.
struct KvLayout {
  int num_layers = 0;
  int num_kv_heads = 0;  // Of the model.
  int head_dim = 0;
  int num_planes = 2;     // 2: keys and values; 1: an MLA latent.
  int element_bytes = 2;  // 4: f32, 2: bf16 on GPUs and f16 on CPUs, 1: FP8 (E4M3, no scales).
  int page_tokens = 16;
  int num_pages = 0;
  int tp_rank = 0;
  int tp_size = 1;

  bool operator==(const KvLayout&) const = default;

  int own_heads() const { return tp_size <= num_kv_heads ? num_kv_heads / tp_size : 1; }
  int first_head() const { return tp_size <= num_kv_heads ? tp_rank * own_heads() : tp_rank / replicas(); }
  // Ranks that hold the same head.
  int replicas() const { return tp_size <= num_kv_heads ? 1 : tp_size / num_kv_heads; }

  int64_t token_bytes() const { return int64_t{head_dim} * element_bytes; }
  int64_t head_bytes() const { return page_tokens * token_bytes(); }
  int64_t layer_bytes() const { return int64_t{num_planes} * own_heads() * head_bytes(); }
  int64_t page_bytes() const { return num_layers * layer_bytes(); }
  int64_t pool_bytes() const { return num_pages * page_bytes(); }

  // Byte offset of the first token's row of one of the rank's own heads, counted from first_head().
  int64_t HeadOffset(PageIndex page, int layer, int plane, int own_head) const {
    return page * page_bytes() + layer * layer_bytes() + (int64_t{plane} * own_heads() + own_head) * head_bytes();
  }

  std::string ToString() const;
  // INVALID_ARGUMENT: a size that cannot be, or heads that do not divide.
  absl::Status Validate() const;
};

// A pool's memory with its shape. Ownership: borrows the memory.
struct KvPoolView {
  KvLayout layout;
  uint8_t* base = nullptr;
};

// OK when KV can move between ranks of these layouts: page sizes and tensor parallelism may differ,
// the model's shape and element type may not. INVALID_ARGUMENT names both values.
absl::Status CheckCompatible(const KvLayout& source, const KvLayout& destination);

}  // namespace tandem
