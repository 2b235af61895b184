#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace tandem {

// A linear layer of many rows, bound by tensor cores, with what stands behind it: the residual, or the gate.
struct TiledLinearArguments {
  const __nv_bfloat16* weight = nullptr;  // [out_features][in_features]
  const __nv_bfloat16* in = nullptr;      // [rows][in_features]
  // [rows][out_features]; where gated [rows][out_features / 2], silu of the first half of the features times the second.
  __nv_bfloat16* out = nullptr;
  bool add = false;  // To what `out` holds; not where gated.
  bool is_gated = false;
  int rows = 0;
  int out_features = 0;
  int in_features = 0;
};

// Whether there is code for it on such a device, and it is faster than cuBLAS there.
bool IsTiled(const TiledLinearArguments& arguments, int compute_major, int multiprocessors);
// Enqueues it. `multiprocessors`: of the device.
cudaError_t LaunchTiledLinear(const TiledLinearArguments& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace tandem
