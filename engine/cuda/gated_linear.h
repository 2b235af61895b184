#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace tandem {

// A linear layer of many rows, bound by tensor cores, with the gate behind it: silu of the first half of the features
// times the second.
struct GatedLinearArguments {
  const __nv_bfloat16* weight = nullptr;  // [2 * columns][in_features], gate above what it opens.
  const __nv_bfloat16* in = nullptr;      // [rows][in_features]
  __nv_bfloat16* out = nullptr;           // [rows][columns]
  int rows = 0;
  int columns = 0;
  int in_features = 0;
};

// Whether there is code for it on such a device, and it is no slower there than cuBLAS and a kernel for the gate.
bool HasGatedLinear(const GatedLinearArguments& arguments, int compute_major);
// Enqueues it. `multiprocessors`: of the device.
cudaError_t LaunchGatedLinear(const GatedLinearArguments& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace tandem
