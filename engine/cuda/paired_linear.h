#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/skinny_linear.h"

namespace tandem {

inline constexpr int kMaxPairedRows = 128;

// Whether there is code for it on a device of this compute capability: of bf16, without a norm, of more rows than
// streamed_linear takes.
bool IsPaired(const SkinnyLinearArguments& arguments, int compute_major);

// What blocks that divide a layer's input features among themselves write to each other. `arrived` is zeros, and zeros
// again when the kernel has ended.
struct PairedExchange {
  float* partial = nullptr;     // [PairedPartialFloats]
  uint32_t* arrived = nullptr;  // [PairedArrived]
};
int64_t PairedPartialFloats(int multiprocessors);
int64_t PairedArrived(int multiprocessors);

// The same as LaunchSkinnyLinear, for up to kMaxPairedRows; `in` has room for the next multiple of 64 rows, since rows
// that are not there are slow to copy. Bound by reading weights, where cuBLAS loses 2 to 5 us at
// the begin and the end of each layer. Results do not depend on which block comes first.
cudaError_t LaunchPairedLinear(const SkinnyLinearArguments& arguments, const PairedExchange& exchange,
                               int multiprocessors, cudaStream_t stream);

}  // namespace tandem
