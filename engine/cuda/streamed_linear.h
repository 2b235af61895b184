#pragma once

#include <cuda_runtime_api.h>

#include "engine/cuda/skinny_linear.h"

namespace tandem {

inline constexpr int kMaxStreamedRows = 32;

// Whether there is code for it on a device of this compute capability: of bf16, without a norm.
bool IsStreamed(const SkinnyLinearArguments& arguments, int compute_major);
// The same as LaunchSkinnyLinear, for up to kMaxStreamedRows: weights come through the copy engine of each
// multiprocessor (TMA), the first 96 KB of them before the kernel ahead has ended.
cudaError_t LaunchStreamedLinear(const SkinnyLinearArguments& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace tandem
