#include <cfloat>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/sample_kernel.h"

namespace tandem {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 256;

// An unsigned number that is ordered as the float is.
__device__ __forceinline__ uint32_t OrderedKey(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Best {
  float value;
  int index;
};
__device__ __forceinline__ Best Better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

// The best of all threads' values, the lower index where they are equal.
__device__ Best BestOfBlock(Best own) {
  __shared__ Best warps[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) {
    own = Better(own, {__shfl_xor_sync(0xffffffffu, own.value, step), __shfl_xor_sync(0xffffffffu, own.index, step)});
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  Best best = warps[0];
  for (int i = 1; i < kThreads / 32; ++i) best = Better(best, warps[i]);
  return best;
}

// The largest key such that those not below it weigh at least `wanted` together; digit by digit.
template <typename Weight>
__device__ uint32_t FindThreshold(const float* logits, int columns, unsigned long long wanted, Weight weight_of) {
  __shared__ unsigned long long bins[kBins];
  __shared__ uint32_t found;
  __shared__ unsigned long long still_wanted;
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    const uint32_t known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
    for (int i = threadIdx.x; i < columns; i += kThreads) {
      const uint32_t key = OrderedKey(logits[i]);
      if ((key & known) == prefix) atomicAdd(&bins[key >> shift & 0xff], weight_of(logits[i], key));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long left = wanted;
      int digit = kBins - 1;
      while (digit > 0 && bins[digit] < left) left -= bins[digit--];
      found = prefix | static_cast<uint32_t>(digit) << shift;
      still_wanted = left;
    }
    __syncthreads();
    prefix = found;
    wanted = still_wanted;
    __syncthreads();
  }
  return prefix;
}

__device__ __forceinline__ uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// A draw from the standard Gumbel distribution: the index of the best of log weight + draw is chosen with a
// probability in proportion to its weight.
__device__ __forceinline__ float GumbelDraw(uint64_t stream, int index) {
  const uint64_t bits = Mix(stream + static_cast<uint64_t>(index + 1) * 0xD1B54A32D192ED03ull);
  const double uniform = (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
  return -logf(static_cast<float>(-log(uniform)));
}

__global__ void __launch_bounds__(kThreads)
    SampleKernel(const float* all_logits, int columns, const SampleSettings* all_settings, int32_t* tokens,
                 int32_t* results) {
  __shared__ unsigned long long total;
  __shared__ SampleSettings settings;
  LetNextKernelBegin();
  const int row = blockIdx.x;
  const float* logits = all_logits + static_cast<int64_t>(row) * columns;
  if (threadIdx.x == 0) settings = all_settings[row];
  WaitForEarlierKernels();

  Best best = {-INFINITY, columns};
  bool finite = true;
  const auto take = [&](float value, int i) {
    finite &= isfinite(value);
    best = Better(best, {value, i});
  };
  if (columns % 4 == 0) {
    const float4* fours = reinterpret_cast<const float4*>(logits);
#pragma unroll 8
    for (int i = threadIdx.x; i < columns / 4; i += kThreads) {
      const float4 four = fours[i];
      take(four.x, 4 * i), take(four.y, 4 * i + 1), take(four.z, 4 * i + 2), take(four.w, 4 * i + 3);
    }
  } else {
    for (int i = threadIdx.x; i < columns; i += kThreads) take(logits[i], i);
  }
  best = BestOfBlock(best);
  finite = __syncthreads_and(finite);
  const bool greedy = settings.temperature <= 0;
  if (greedy || !finite) {
    if (threadIdx.x == 0) {
      tokens[row] = finite ? best.index : 0;
      results[row] = finite ? best.index : -1;
    }
    return;
  }

  const float inverse = 1.0f / settings.temperature;
  uint32_t threshold = 0;
  if (settings.top_k > 0 && settings.top_k < columns) {
    threshold = FindThreshold(logits, columns, settings.top_k, [](float, uint32_t) { return 1ull; });
  }
  if (settings.top_p < 1) {
    // Weights as whole numbers, so that their sum does not depend on the order.
    const float top = best.value;
    const uint32_t kept_from = threshold;
    const auto weight = [&](float value, uint32_t key) -> unsigned long long {
      return key < kept_from ? 0 : static_cast<unsigned long long>(expf((value - top) * inverse) * 0x1p32f);
    };
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    unsigned long long own = 0;
    for (int i = threadIdx.x; i < columns; i += kThreads) own += weight(logits[i], OrderedKey(logits[i]));
    atomicAdd(&total, own);
    __syncthreads();
    const auto wanted = static_cast<unsigned long long>(static_cast<double>(total) * settings.top_p);
    const uint32_t found = FindThreshold(logits, columns, wanted > 0 ? wanted : 1, weight);
    threshold = found > threshold ? found : threshold;
  }
  const float least = settings.min_p > 0 ? best.value + settings.temperature * logf(settings.min_p) : -INFINITY;
  const uint64_t stream = Mix(settings.seed + (settings.index + 1) * 0x9E3779B97F4A7C15ull);
  Best chosen = {-INFINITY, columns};
  for (int i = threadIdx.x; i < columns; i += kThreads) {
    const float value = logits[i];
    if (OrderedKey(value) < threshold || value < least) continue;
    chosen = Better(chosen, {(value - best.value) * inverse + GumbelDraw(stream, i), i});
  }
  chosen = BestOfBlock(chosen);
  if (threadIdx.x == 0) tokens[row] = results[row] = chosen.index < columns ? chosen.index : best.index;
}

__global__ void __launch_bounds__(kThreads)
    MaskKernel(float* logits, int columns, const int32_t* rows, const uint32_t* masks, int mask_words) {
  LetNextKernelBegin();
  const int column = blockIdx.x * kThreads + threadIdx.x;
  const bool allowed = column >= columns ||
                       (masks[static_cast<int64_t>(blockIdx.y) * mask_words + column / 32] >> (column % 32) & 1) != 0;
  float* logit = logits + static_cast<int64_t>(rows[blockIdx.y]) * columns + column;
  WaitForEarlierKernels();
  if (!allowed && isfinite(*logit)) *logit = -FLT_MAX;
}

}  // namespace

cudaError_t LaunchMask(float* logits, int columns, const int32_t* rows, const uint32_t* masks, int mask_words,
                       int count, cudaStream_t stream) {
  return LaunchEarly(MaskKernel, dim3((columns + kThreads - 1) / kThreads, count), kThreads, 0, stream, logits, columns,
                     rows, masks, mask_words);
}

cudaError_t LaunchSample(const float* logits, int rows, int columns, const SampleSettings* settings, int32_t* tokens,
                         int32_t* results, cudaStream_t stream) {
  return LaunchEarly(SampleKernel, rows, kThreads, 0, stream, logits, columns, settings, tokens, results);
}

}  // namespace tandem
