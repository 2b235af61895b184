#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// A layer of experts, each token computed with the weights of its own: right for any batch, but a weight is read once
// for every token that chose it, so that only small batches come near what memory gives.
struct MoeArguments {
  const __nv_bfloat16* in = nullptr;              // [rows][hidden]
  const float* router_logits = nullptr;           // [rows][num_experts]
  const __nv_bfloat16* const* gate_up = nullptr;  // [num_experts], each [2 * width][hidden]
  const __nv_bfloat16* const* down = nullptr;     // [num_experts], each [hidden][width]
  int rows = 0, hidden = 0, width = 0;
  int num_experts = 0, experts_per_token = 0;
  bool normalise_top_k = false;
  // Scratch.
  int32_t* chosen = nullptr;           // [rows][experts_per_token]
  float* weights = nullptr;            // [rows][experts_per_token]
  __nv_bfloat16* activated = nullptr;  // [rows][experts_per_token][width]
  __nv_bfloat16* out = nullptr;        // [rows][hidden]; added to.
};
inline constexpr int kMaxExperts = 512;

cudaError_t LaunchMoe(const MoeArguments& arguments, cudaStream_t stream);

}  // namespace tandem
