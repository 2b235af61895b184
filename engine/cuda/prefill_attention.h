#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/prefill_tiles.h"
#include "engine/cuda/step_view.h"

namespace tandem {

// Causal attention of whole chunks over pages, bound by tensor cores, on Hopper.
struct PrefillAttentionArguments {
  HeadShape shape;
  LayerPages pages;                     // Of bf16.
  const int32_t* page_table = nullptr;  // As StepView::pages.
  const __nv_bfloat16* qkv = nullptr;   // [rows][query heads | key heads | value heads], queries rotated.
  int rows = 0;                         // Of qkv and out.
  const PrefillTile* tiles = nullptr;   // [num_tiles], of PrefillTileRows.
  int num_tiles = 0;
  int32_t* taken = nullptr;      // 0 before, anything after: how many of the tiles blocks have taken.
  __nv_bfloat16* out = nullptr;  // [rows][query heads]; other rows than those of the tiles are left as they are.
};

// Whether there is code for heads of this shape on a device of this compute capability.
bool HasPrefillAttention(const HeadShape& shape, int compute_major);
int PrefillTileRows(const HeadShape& shape);
// Enqueues it. `multiprocessors`: of the device.
cudaError_t LaunchPrefillAttention(const PrefillAttentionArguments& arguments, int multiprocessors,
                                   cudaStream_t stream);

}  // namespace tandem
