#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/paged_attention.h"

namespace tandem {

// The same as LaunchPagedAttention, for the sequences of one row of a step with many of them, on Hopper: each
// multiprocessor takes as many tokens as any other, through its copy engine (TMA), without a pause between sequences.
// Reads `step.sequences`, not its parts, and needs StreamedPartialFloats and StreamedArrived zeros.
//
// Whether there is code for it on a device of this compute capability, and whether it is faster there.
bool HasStreamedAttention(const PagedAttentionArguments& arguments, int compute_major);
bool IsStreamedAttention(const PagedAttentionArguments& arguments, int compute_major, int multiprocessors);
cudaError_t LaunchStreamedAttention(const PagedAttentionArguments& arguments, int multiprocessors, cudaStream_t stream);

int64_t StreamedPartialFloats(const HeadShape& shape, int multiprocessors);
int64_t StreamedArrived(int multiprocessors);

}  // namespace tandem
