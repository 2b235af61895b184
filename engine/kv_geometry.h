#pragma once

#include <cstdint>

#include "common/ids.h"

namespace tandem {

// Shape of one rank's KV pool: [num_pages][num_layers][num_planes][num_kv_heads][page_tokens][head_dim].
// A page holds all layers of its tokens, so that a layer group of a page is one run of bytes, and a head
// of a layer is one, too. Planes are keys and values; an MLA latent has one plane and one head.
struct KvGeometry {
  int num_layers = 0;
  int num_planes = 2;
  int num_kv_heads = 0;
  int page_tokens = 0;
  int head_dim = 0;
  int element_bytes = 2;  // 2: f16; 4: f32.
  int num_pages = 0;

  int64_t head_bytes() const { return int64_t{page_tokens} * head_dim * element_bytes; }
  int64_t layer_bytes() const { return num_planes * num_kv_heads * head_bytes(); }
  int64_t page_bytes() const { return num_layers * layer_bytes(); }
  int64_t pool_bytes() const { return num_pages * page_bytes(); }
  // Byte offset of the first token's row of one head.
  int64_t HeadOffset(PageIndex page, int layer, int plane, int head) const {
    return page * page_bytes() + layer * layer_bytes() +
           (int64_t{plane} * num_kv_heads + head) * head_bytes();
  }
};

// A pool's memory with its shape. Ownership: borrows the memory.
struct KvPoolView {
  KvGeometry geometry;
  uint8_t* base = nullptr;
};

}  // namespace tandem
