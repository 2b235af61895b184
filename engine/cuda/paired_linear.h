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

// The same as LaunchSkinnyLinear, for up to kMaxPairedRows, bound by reading weights. `in` has room for the next
// multiple of 64 rows: rows that a copy finds missing are slow. Results do not depend on which block comes first.
cudaError_t LaunchPairedLinear(const SkinnyLinearArguments& arguments, const PairedExchange& exchange,
                               int multiprocessors, cudaStream_t stream);

}  // namespace tandem
