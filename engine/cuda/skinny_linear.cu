#include <algorithm>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/skinny_linear.h"

// How it works. A block takes tiles of 16 features, one after the other; each of its warps takes the same part of the
// input features of all of them. A warp multiplies on tensor cores, weights on the left and up to 8 tokens on the
// right, straight from what it loaded: the order in which products are summed is free, so each thread's 16 bytes of a
// weight row stand for the places that the instruction wants from it, and the same is done with the tokens. The warps'
// sums meet in shared memory.
//
// What counts is that the weights never stop coming: loads are ordered a batch ahead, the first ones before the
// kernel's input is there, and a block takes no more than half of a multiprocessor, so that the next kernel's first
// loads go out while this one ends.

namespace tandem {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kTileRows = 16;
constexpr int kStep = 32;             // Input features of a step: 16 bytes for each thread of a quad.
constexpr int kRowPad = 64;           // Bytes behind a staged row, so that 8 rows lie in unlike banks.
constexpr int kMaxStaged = 96 << 10;  // Bytes of the input that a block keeps in shared memory.

template <int kMatrices, int kDepth>
struct Batch {
  uint4 low[kMatrices][kDepth], high[kMatrices][kDepth];  // Feature rows lane / 4 and lane / 4 + 8 of the tile.
};

// Copies the input to shared memory, times the norm's weights where there are any; what is left of the norm is a factor
// for each token, which goes into the outputs: `scales`, valid after the block's next barrier but one.
template <int kTokens>
__device__ __forceinline__ void StageInput(const SkinnyLinearArguments& a, uint8_t* staged, int row_bytes,
                                           float* scales) {
  __shared__ float sums[kTokens][kWarps];
  constexpr int kTogether = 4;
  const int loads = a.in_features / 8;
  float squares[kTokens] = {};
  for (int i = threadIdx.x; i < loads; i += kThreads) {
    uint4 factor;
    if (a.norm != nullptr) factor = reinterpret_cast<const uint4*>(a.norm)[i];
#pragma unroll
    for (int first = 0; first < kTokens; first += kTogether) {
      uint4 values[kTogether];
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        if (first + t >= a.rows) continue;
        values[t] = reinterpret_cast<const uint4*>(a.in + static_cast<int64_t>(first + t) * a.in_features)[i];
      }
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        if (first + t >= a.rows) continue;
        uint4 value = values[t];
        if (a.norm != nullptr) {
          const auto weigh = [&](uint32_t v, uint32_t f) {
            const float2 x = UnpackPair(v), y = UnpackPair(f);
            squares[first + t] += x.x * x.x + x.y * x.y;
            return PackPair(x.x * y.x, x.y * y.y);
          };
          value = make_uint4(weigh(value.x, factor.x), weigh(value.y, factor.y), weigh(value.z, factor.z),
                             weigh(value.w, factor.w));
        }
        reinterpret_cast<uint4*>(staged + (first + t) * row_bytes)[i] = value;
      }
    }
  }
  if (a.norm != nullptr) {
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      if (token >= a.rows) continue;
      const float sum = SumOfWarp(squares[token]);
      if (threadIdx.x % 32 == 0) sums[token][threadIdx.x / 32] = sum;
    }
  }
  __syncthreads();
  if (a.norm != nullptr && threadIdx.x < a.rows) {
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[threadIdx.x][warp];
    scales[threadIdx.x] = rsqrtf(sum / a.in_features + a.epsilon);
  }
}

// kGroups: of 8 tokens. kGated: each tile is two, of the gate's features and of the other factor's.
template <int kGroups, bool kGated>
__global__ void __launch_bounds__(kThreads, 2) SkinnyLinearKernel(SkinnyLinearArguments a, int staged_row_bytes) {
  constexpr int kMatrices = kGated ? 2 : 1;
  constexpr int kDepth = kGated ? 2 : 4;
  constexpr int kTokens = 8 * kGroups;
  constexpr int kSumStride = kTokens + 1;
  constexpr int kSums = kMatrices * kTileRows * kSumStride;  // Of one warp.
  extern __shared__ uint4 shared[];
  float* sums = reinterpret_cast<float*>(shared);  // [2][kWarps][kSums]
  uint8_t* staged = reinterpret_cast<uint8_t*>(shared) + 2 * kWarps * kSums * sizeof(float);

  __shared__ float scales[kTokens];
  LetNextKernelBegin();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int steps = a.in_features / kStep;
  const int first_step = steps * warp / kWarps, end_step = steps * (warp + 1) / kWarps;
  const int half = a.out_features / kMatrices;  // Features of each matrix.
  const int tiles = half / kTileRows;

  using WarpBatch = Batch<kMatrices, kDepth>;
  const __nv_bfloat16* origin = a.weight + static_cast<int64_t>(group) * a.in_features + quad * 8;
  const auto load = [&](WarpBatch& batch, int tile, int step) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        if (tile < tiles && step + d < end_step) {
          const __nv_bfloat16* from =
              origin + (static_cast<int64_t>(m) * half + tile * kTileRows) * a.in_features + (step + d) * kStep;
          batch.low[m][d] = LoadStreamed(from);
          batch.high[m][d] = LoadStreamed(from + 8 * static_cast<int64_t>(a.in_features));
        } else {
          batch.low[m][d] = batch.high[m][d] = make_uint4(0, 0, 0, 0);
        }
      }
    }
  };

  float c[kMatrices][kGroups][4] = {};
  const auto multiply = [&](const WarpBatch& batch, int step) {
    uint4 tokens[kDepth][kGroups];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int token = g * 8 + group;
        tokens[d][g] = make_uint4(0, 0, 0, 0);
        if (token >= a.rows || step + d >= end_step) continue;
        const uint8_t* row = staged_row_bytes > 0
                                 ? staged + token * staged_row_bytes
                                 : reinterpret_cast<const uint8_t*>(a.in + static_cast<int64_t>(token) * a.in_features);
        tokens[d][g] = *reinterpret_cast<const uint4*>(row + (step + d) * (kStep * 2) + quad * 16);
      }
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const uint4 low = batch.low[m][d], high = batch.high[m][d];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          MultiplyAdd(c[m][g], low.x, high.x, low.y, high.y, tokens[d][g].x, tokens[d][g].y);
          MultiplyAdd(c[m][g], low.z, high.z, low.w, high.w, tokens[d][g].z, tokens[d][g].w);
        }
      }
    }
  };

  int buffer = 0;
  const auto finish_tile = [&](int tile) {
    float* own = sums + (buffer * kWarps + warp) * kSums;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          own[(m * kTileRows + group + 8 * (i / 2)) * kSumStride + g * 8 + quad * 2 + i % 2] = c[m][g][i];
          c[m][g][i] = 0;
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTileRows * a.rows; i += kThreads) {
      const int row = i % kTileRows, token = i / kTileRows;
      const auto total = [&](int m) {
        float sum = 0;
        for (int w = 0; w < kWarps; ++w) {
          sum += sums[(buffer * kWarps + w) * kSums + (m * kTileRows + row) * kSumStride + token];
        }
        return sum;
      };
      const int feature = tile * kTileRows + row;
      const int64_t at = static_cast<int64_t>(token) * half + feature;
      const float scale = a.norm != nullptr ? scales[token] : 1.0f;
      float value = total(0) * scale;
      if constexpr (kGated) {
        value = Silu(value) * total(1) * scale;
      } else if (a.bias != nullptr) {
        value += __bfloat162float(a.bias[feature]);
      }
      if (a.is_float) {
        static_cast<float*>(a.out)[at] = value;
      } else {
        auto* out = static_cast<__nv_bfloat16*>(a.out) + at;
        if (a.add) value += __bfloat162float(*out);
        *out = __float2bfloat16_rn(value);
      }
    }
    buffer ^= 1;
  };

  // Warps differ in steps by one at most: all take as many batches.
  const int batches = (steps + kWarps - 1) / kWarps;
  const int rounds = (batches + kDepth - 1) / kDepth;
  int tile = blockIdx.x, round = 0;                // What is multiplied next,
  int loaded_tile = blockIdx.x, loaded_round = 0;  // and loaded next.
  const auto load_next = [&](WarpBatch& batch) {
    load(batch, loaded_tile, first_step + loaded_round * kDepth);
    if (++loaded_round == rounds) {
      loaded_round = 0;
      loaded_tile += gridDim.x;
    }
  };
  const auto multiply_next = [&](const WarpBatch& batch) {
    multiply(batch, first_step + round * kDepth);
    if (++round == rounds) {
      finish_tile(tile);
      round = 0;
      tile += gridDim.x;
    }
  };

  WarpBatch one, other;
  load_next(one);
  load_next(other);
  WaitForEarlierKernels();
  if (staged_row_bytes > 0) StageInput<kTokens>(a, staged, staged_row_bytes, scales);
  while (tile < tiles) {
    multiply_next(one);
    load_next(one);
    if (tile >= tiles) break;
    multiply_next(other);
    load_next(other);
  }
}

struct SharedNeeds {
  size_t bytes = 0;          // Of a block.
  int staged_row_bytes = 0;  // 0: the input is not kept there.
};
SharedNeeds SharedNeedsOf(const SkinnyLinearArguments& a) {
  const int groups = a.rows <= 8 ? 1 : 2, row_bytes = a.in_features * 2 + kRowPad;
  SharedNeeds needs;
  needs.bytes = size_t{2} * kWarps * (a.is_gated ? 2 : 1) * kTileRows * (8 * groups + 1) * sizeof(float);
  if (a.norm == nullptr && a.rows * row_bytes > kMaxStaged) return needs;
  needs.bytes += static_cast<size_t>(a.rows) * row_bytes;
  needs.staged_row_bytes = row_bytes;
  return needs;
}

template <int kGroups, bool kGated>
cudaError_t Launch(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  const SharedNeeds needs = SharedNeedsOf(a);
  const int tiles = a.out_features / (kGated ? 2 : 1) / kTileRows;
  return LaunchEarly(SkinnyLinearKernel<kGroups, kGated>, std::min(tiles, multiprocessors), kThreads, needs.bytes,
                     stream, a, needs.staged_row_bytes);
}

}  // namespace

bool IsSkinny(const SkinnyLinearArguments& a) {
  const int tile = a.is_gated ? 2 * kTileRows : kTileRows;
  constexpr size_t kMostShared = 224 << 10;  // A block may have 227 KB, of which some is the kernel's own.
  return a.rows >= 1 && a.rows <= kMaxSkinnyRows && a.in_features % kStep == 0 && a.out_features % tile == 0 &&
         SharedNeedsOf(a).bytes <= kMostShared;
}

cudaError_t LaunchSkinnyLinear(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  if (a.rows <= 8) {
    return a.is_gated ? Launch<1, true>(a, multiprocessors, stream) : Launch<1, false>(a, multiprocessors, stream);
  }
  return a.is_gated ? Launch<2, true>(a, multiprocessors, stream) : Launch<2, false>(a, multiprocessors, stream);
}

}  // namespace tandem
