#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/float8_kernels.h"

namespace tandem {

// A linear layer of few rows, which takes as long as its weights take to be read. Beside the product it does what
// stands before and after it: the norm of its input, the gate of its output, the residual.
struct SkinnyLinearArguments {
  const __nv_bfloat16* weight = nullptr;  // [out_features][in_features]
  Float8Weight float8;                    // Or this in its place; gate and up are multiples of its block each.
  FewBitWeight few_bits;                  // Or this.
  const __nv_bfloat16* bias = nullptr;    // [out_features], or null.
  const __nv_bfloat16* in = nullptr;      // [rows][in_features]
  const __nv_bfloat16* norm = nullptr;    // [in_features]: of the input, as RmsNorm; or null.
  float epsilon = 0;
  void* out = nullptr;  // [rows][out_features], bf16 or, with is_float, f32.
  bool is_float = false;
  bool add = false;  // To what `out` holds; not with is_float.
  // `out` is [rows][out_features / 2] and gets silu of the first half of the features times the second. Without bias.
  bool is_gated = false;
  int rows = 0;
  int out_features = 0;
  int in_features = 0;
};

// Whether kernels of few rows can do it: none adds floats, or gates with a bias.
inline bool HasFewRowsForm(const SkinnyLinearArguments& a) {
  return !(a.is_float && a.add) && !(a.is_gated && a.bias != nullptr);
}

inline constexpr int kMaxSkinnyRows = 16;
inline constexpr int kMaxFewBitRows = 32;  // Of weights of few bits, without a norm.

// Whether the kernel has code for it.
bool IsSkinny(const SkinnyLinearArguments& arguments);
// Enqueues it. `multiprocessors`: of the device.
cudaError_t LaunchSkinnyLinear(const SkinnyLinearArguments& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace tandem
