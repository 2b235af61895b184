#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/moe_kernels.h"

namespace tandem {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One warp a row: softmax over all experts, then the best ones; the lower expert where they are equal.
__global__ void RouteKernel(MoeArguments a) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int row = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= a.rows) return;
  constexpr int kHeld = kMaxExperts / 32;
  float values[kHeld];
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int expert = i * 32 + lane;
    values[i] =
        expert < a.num_experts ? a.router_logits[static_cast<int64_t>(row) * a.num_experts + expert] : -INFINITY;
    top = fmaxf(top, values[i]);
  }
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) sum += values[i] = expf(values[i] - top);
  sum = SumOfWarp(sum);
  float chosen_sum = 0;
  for (int k = 0; k < a.experts_per_token; ++k) {
    float best = -1;
    int best_expert = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (values[i] > best) best = values[i], best_expert = i * 32 + lane;
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, step);
      const int other_expert = __shfl_xor_sync(0xffffffffu, best_expert, step);
      if (other > best || (other == best && other_expert < best_expert)) best = other, best_expert = other_expert;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i * 32 + lane == best_expert) values[i] = -2;
    }
    chosen_sum += best;
    if (lane == 0) {
      a.chosen[row * a.experts_per_token + k] = best_expert;
      a.weights[row * a.experts_per_token + k] = best;
    }
  }
  __syncwarp();
  for (int k = lane; k < a.experts_per_token; k += 32) {
    a.weights[row * a.experts_per_token + k] /= a.normalise_top_k ? chosen_sum : sum;
  }
}

__device__ __forceinline__ float Dot(const __nv_bfloat16* a, const __nv_bfloat16* b, int count) {
  float sum = 0;
  for (int i = threadIdx.x % 32 * 2; i < count; i += 64) {
    const float2 x = UnpackPair(*reinterpret_cast<const uint32_t*>(a + i));
    const float2 y = UnpackPair(*reinterpret_cast<const uint32_t*>(b + i));
    sum += x.x * y.x + x.y * y.y;
  }
  return SumOfWarp(sum);
}

// A warp for each feature of each chosen expert.
__global__ void ExpertGateKernel(MoeArguments a) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int pair = blockIdx.x, row = pair / a.experts_per_token;
  const int feature = blockIdx.y * kWarps + threadIdx.x / 32;
  if (feature >= a.width) return;
  const __nv_bfloat16* weight = a.gate_up[a.chosen[pair]];
  const __nv_bfloat16* in = a.in + static_cast<int64_t>(row) * a.hidden;
  const float gate = Dot(weight + static_cast<int64_t>(feature) * a.hidden, in, a.hidden);
  const float up = Dot(weight + (static_cast<int64_t>(a.width) + feature) * a.hidden, in, a.hidden);
  if (threadIdx.x % 32 == 0) {
    a.activated[static_cast<int64_t>(pair) * a.width + feature] = __float2bfloat16_rn(Silu(gate) * up);
  }
}

// A warp for each feature of each row: experts in the order in which they were chosen.
__global__ void ExpertDownKernel(MoeArguments a) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int row = blockIdx.x;
  const int feature = blockIdx.y * kWarps + threadIdx.x / 32;
  if (feature >= a.hidden) return;
  float sum = 0;
  for (int k = 0; k < a.experts_per_token; ++k) {
    const int pair = row * a.experts_per_token + k;
    sum += a.weights[pair] * Dot(a.down[a.chosen[pair]] + static_cast<int64_t>(feature) * a.width,
                                 a.activated + static_cast<int64_t>(pair) * a.width, a.width);
  }
  if (threadIdx.x % 32 == 0) {
    __nv_bfloat16* out = a.out + static_cast<int64_t>(row) * a.hidden + feature;
    *out = __float2bfloat16_rn(__bfloat162float(*out) + sum);
  }
}

}  // namespace

cudaError_t LaunchMoe(const MoeArguments& a, cudaStream_t stream) {
  const auto blocks = [](int items) { return (items + kWarps - 1) / kWarps; };
  cudaError_t error = LaunchEarly(RouteKernel, blocks(a.rows), kThreads, 0, stream, a);
  if (error != cudaSuccess) return error;
  error = LaunchEarly(ExpertGateKernel, dim3(a.rows * a.experts_per_token, blocks(a.width)), kThreads, 0, stream, a);
  if (error != cudaSuccess) return error;
  return LaunchEarly(ExpertDownKernel, dim3(a.rows, blocks(a.hidden)), kThreads, 0, stream, a);
}

}  // namespace tandem
