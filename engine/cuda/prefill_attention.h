#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/step_view.h"

namespace tandem {

// Causal attention of whole chunks over pages, bound by tensor cores: FlashInfer's kernel for Hopper.
struct PrefillAttentionArguments {
  HeadShape shape;
  LayerPages pages;
  const int32_t* page_table = nullptr;  // As StepView::pages.
  const __nv_bfloat16* qkv = nullptr;   // [rows][query heads | key heads | value heads], queries rotated.
  int rows = 0;                         // Of qkv and out.
  __nv_bfloat16* out = nullptr;         // [rows][query heads]
};

// How a step's chunks are dealt to the multiprocessors, for all of its layers.
//
// Ownership: what it points to lies in the workspaces that MakePrefillPlan was given.
struct PrefillPlan {
  const int32_t *qo_tiles = nullptr, *qo_begins = nullptr, *kv_begins = nullptr, *qo_lengths = nullptr,
                *kv_lengths = nullptr, *heads = nullptr, *work_begins = nullptr, *batches = nullptr;
  bool same_for_all_heads = false;
};

inline constexpr int64_t kPrefillWorkspaceBytes = int64_t{16} << 20;

// Whether there is code for heads of this shape on a device of this compute capability.
bool HasPrefillAttention(const HeadShape& shape, int compute_major);

// Plans chunks that lie one behind the other, and enqueues the copy of the plan. `first_rows`: [count + 1];
// `first_pages`: [count + 1] into the page table; `contexts`: [count]; `host` is pinned and read until the copy is
// over; both workspaces have kPrefillWorkspaceBytes.
cudaError_t MakePrefillPlan(const HeadShape& shape, const int32_t* first_rows, const int32_t* first_pages,
                            const int32_t* contexts, int count, void* device, void* host, cudaStream_t stream,
                            PrefillPlan* plan);
cudaError_t LaunchPrefillAttention(const PrefillAttentionArguments& arguments, const PrefillPlan& plan,
                                   cudaStream_t stream);

}  // namespace tandem
