#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/step_view.h"

namespace tandem {

// Causal attention over pages, made for sequences of one row: bound by how fast keys and values are read. Longer
// chunks are right, too, but are read once for every 8 / (query heads of a KV head) rows.
struct PagedAttentionArguments {
  StepView step;
  HeadShape shape;
  LayerPages pages;
  // [rows][query heads | key heads | value heads]. With `appends`, as the linear layer left them: each sequence has one
  // row then, whose keys and values go to their slots. Without: queries are rotated, and the slots are filled.
  const __nv_bfloat16* qkv = nullptr;
  HeadRotation rotation;  // With `appends`.
  bool appends = false;
  int max_rows = 1;  // Of a sequence in step.parts; with more than one, each is one part.
  // Where a sequence has several parts, the last one of their blocks to end puts them together.
  float* partial = nullptr;      // PartialFloats(...) of them.
  uint32_t* arrived = nullptr;   // NumArrived(...) zeros.
  __nv_bfloat16* out = nullptr;  // [rows][query heads]
};

// Of each part: one for each KV head and 8 query heads of it.
int BlocksOfPart(const HeadShape& shape);
int64_t PartialFloats(const HeadShape& shape, int num_parts);
int64_t NumArrived(const HeadShape& shape, int num_parts);

// Enqueues it. `step`'s arrays were written by a copy, not by a kernel.
cudaError_t LaunchPagedAttention(const PagedAttentionArguments& arguments, cudaStream_t stream);

}  // namespace tandem
