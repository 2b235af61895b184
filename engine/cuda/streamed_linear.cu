#include "engine/cuda/streamed_linear.h"

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <algorithm>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/hopper_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/tensor_map.h"

// How it works. A block takes tiles of features, the first as soon as it runs: one thread orders copies of weights and
// input into a ring in shared memory, as far ahead as that is long, and four warps multiply what has come. Weights are
// the left matrix, of 64 features (a shorter tile's product reads what lies behind it, and those rows are dropped), the
// tokens are the right one.
//
// What counts is that the weights never stop coming: they do not depend on the kernel ahead, so a whole ring of them is
// ordered before that has ended. A block takes less than half of a multiprocessor's memory, so that the next kernel's
// blocks can do the same while this one runs.

namespace tandem {
namespace {

namespace gmma = cute::SM90::GMMA;

constexpr int kProductFeatures = 64;  // Of one instruction.
constexpr int kConsumers = kGroupThreads;
constexpr int kThreads = kConsumers + 32;
constexpr int kMaxStages = 32;
constexpr int kRingBytes = 96 << 10;
constexpr int kBehind = kProductFeatures * kAtomBytes;  // What a product may read behind the ring.
constexpr int kSharedBytes = kRingBytes + kBehind + kRingAlignment;

// How the features are cut.
struct Tiling {
  int features = 0;  // Of a part of a tile; a multiple of 8, at most kProductFeatures.
  int tiles = 0;
  int stages = 0;
};

template <int kTokens>
struct Product;
template <>
struct Product<8> : gmma::MMA_64x8x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<16> : gmma::MMA_64x16x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<32> : gmma::MMA_64x32x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};

// c += of 16 input features at these places of shared memory.
template <int kTokens, size_t... kIndices>
__device__ __forceinline__ void MultiplyAddAsync(float (&c)[kTokens / 2], uint64_t weight, uint64_t input,
                                                 bool is_first, std::index_sequence<kIndices...>) {
  Product<kTokens>::fma(weight, input, c[kIndices]..., is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}

// kBlocks: of a tile, each one product's features; where kGated those of the gate and of the other factor.
template <int kTokens, int kBlocks, bool kGated>
__global__ void __launch_bounds__(kThreads, 2)
    StreamedLinearKernel(const __grid_constant__ CUtensorMap weight_map, const __grid_constant__ CUtensorMap input_map,
                         SkinnyLinearArguments a, Tiling tiling) {
  constexpr int kAtoms = kBlocks == 1 ? 2 : 1;  // Of a stage: short ones cost more than they bring.
  constexpr int kParts = kGated ? 1 : kBlocks;  // Of a tile, in the output.
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  LetNextKernelBegin();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* const ring = AlignedRing(shared);
  const int block_bytes = tiling.features * kAtomBytes;
  const int weight_bytes = kBlocks * kAtoms * block_bytes;
  const int stage_bytes = weight_bytes + kAtoms * kTokens * kAtomBytes;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < tiling.stages; ++stage) {
      Barrier::init(&full[stage], 1);
      Barrier::init(&empty[stage], kConsumers / 32);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  const int chunks = (a.in_features + kAtom * kAtoms - 1) / (kAtom * kAtoms);
  const int own_tiles = (tiling.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / gridDim.x;
  const int half = a.out_features / 2;  // Where kGated.

  if (warp == kConsumers / 32) {
    if (lane != 0) {
      WaitForEarlierKernels();
      return;
    }
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&weight_map));
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&input_map));
    constexpr uint64_t kOnce = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST);
    const auto load_weights = [&](int tile, int chunk, int stage) {
      Barrier::arrive_and_expect_tx(&full[stage], stage_bytes);
      uint8_t* to = ring + stage * stage_bytes;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int feature = kGated ? block * half + tile * tiling.features : (tile * kBlocks + block) * tiling.features;
#pragma unroll
        for (int atom = 0; atom < kAtoms; ++atom) {
          cute::SM90_TMA_LOAD_2D::copy(&weight_map, &full[stage], kOnce, to, (chunk * kAtoms + atom) * kAtom, feature);
          to += block_bytes;
        }
      }
    };
    const auto load_input = [&](int chunk, int stage) {
      uint8_t* to = ring + stage * stage_bytes + weight_bytes;
#pragma unroll
      for (int atom = 0; atom < kAtoms; ++atom) {
        cute::SM90_TMA_LOAD_2D::copy(&input_map, &full[stage], kNormalHint, to, (chunk * kAtoms + atom) * kAtom, 0);
        to += kTokens * kAtomBytes;
      }
    };
    const int ahead = min(tiling.stages, chunks);
    for (int chunk = 0; chunk < ahead; ++chunk) load_weights(blockIdx.x, chunk, chunk);
    WaitForEarlierKernels();
    for (int chunk = 0; chunk < ahead; ++chunk) load_input(chunk, chunk);
    int stage = ahead % tiling.stages, turn = ahead / tiling.stages;
    for (int i = 0; i < own_tiles; ++i) {
      for (int chunk = i == 0 ? ahead : 0; chunk < chunks; ++chunk) {
        if (turn > 0) Barrier::wait(&empty[stage], (turn - 1) & 1);
        load_weights(blockIdx.x + i * gridDim.x, chunk, stage);
        load_input(chunk, stage);
        if (++stage == tiling.stages) stage = 0, ++turn;
      }
    }
    return;
  }

  WaitForEarlierKernels();
  const int group = lane / 4, quad = lane % 4;
  float c[kBlocks][kTokens / 2];
  int stage = 0, turn = 0, last_stage = -1;
  const auto release = [&](int of) {
    if (lane == 0) Barrier::arrive(&empty[of]);
  };
  const int out_columns = kGated ? half : a.out_features;
  // Where this thread's sums belong: `j` of those of a part of a tile.
  const auto own_of = [&](int j) { return warp * 16 + group + j % 4 / 2 * 8; };
  const auto token_of = [&](int j) { return j / 4 * 8 + quad * 2 + j % 2; };
  const auto feature_of = [&](int tile, int block, int j) {
    return (kGated ? tile : tile * kBlocks + block) * tiling.features + own_of(j);
  };
  const auto is_wanted = [&](int tile, int block, int j) {
    return own_of(j) < tiling.features && token_of(j) < a.rows && feature_of(tile, block, j) < out_columns;
  };
  const auto place_of = [&](int tile, int block, int j) {
    return static_cast<int64_t>(token_of(j)) * out_columns + feature_of(tile, block, j);
  };
  for (int i = 0; i < own_tiles; ++i) {
    const int tile = blockIdx.x + i * gridDim.x;
    float added[kParts][kTokens / 2] = {};  // What the sums come to, read while weights come.
#pragma unroll
    for (int block = 0; block < kParts; ++block) {
#pragma unroll
      for (int j = 0; j < kTokens / 2; ++j) {
        if (!is_wanted(tile, block, j)) continue;
        if (a.bias != nullptr) added[block][j] = __bfloat162float(a.bias[feature_of(tile, block, j)]);
        if (a.add) {
          added[block][j] += __bfloat162float(static_cast<const __nv_bfloat16*>(a.out)[place_of(tile, block, j)]);
        }
      }
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      Barrier::wait(&full[stage], turn & 1);
      const uint32_t weights = SharedAddress(ring + stage * stage_bytes), input = weights + weight_bytes;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (float& value : c[block]) cute::warpgroup_fence_operand(value);
      }
      cute::warpgroup_arrive();
#pragma unroll
      for (int atom = 0; atom < kAtoms; ++atom) {
#pragma unroll
        for (int k = 0; k < kAtom / 16; ++k) {
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) {
            MultiplyAddAsync<kTokens>(c[block], MatrixAt(weights + (block * kAtoms + atom) * block_bytes + k * 32),
                                      MatrixAt(input + atom * kTokens * kAtomBytes + k * 32),
                                      chunk == 0 && atom == 0 && k == 0, std::make_index_sequence<kTokens / 2>());
          }
        }
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      if (last_stage >= 0) release(last_stage);
      last_stage = stage;
      if (++stage == tiling.stages) stage = 0, ++turn;
    }
    cute::warpgroup_wait<0>();
    release(last_stage);
    last_stage = -1;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (float& value : c[block]) cute::warpgroup_fence_operand(value);
    }

#pragma unroll
    for (int block = 0; block < kParts; ++block) {
#pragma unroll
      for (int j = 0; j < kTokens / 2; ++j) {
        if (!is_wanted(tile, block, j)) continue;
        const float value = (kGated ? Silu(c[0][j]) * c[kBlocks - 1][j] : c[block][j]) + added[block][j];
        const int64_t at = place_of(tile, block, j);
        if (a.is_float) {
          static_cast<float*>(a.out)[at] = value;
        } else {
          static_cast<__nv_bfloat16*>(a.out)[at] = __float2bfloat16_rn(value);
        }
      }
    }
  }
}

// The cut whose busiest block copies least.
template <int kTokens, int kBlocks, bool kGated>
Tiling Cut(const SkinnyLinearArguments& a, int multiprocessors) {
  constexpr int kAtoms = kBlocks == 1 ? 2 : 1;
  constexpr int kPerTile = kGated ? 1 : kBlocks;
  const int features = kGated ? a.out_features / 2 : a.out_features;
  Tiling best;
  int64_t least = INT64_MAX;
  for (int own = kProductFeatures; own >= 8; own -= 8) {
    const int tiles = (features + own * kPerTile - 1) / (own * kPerTile);
    const int64_t turns = (tiles + multiprocessors - 1) / multiprocessors;
    // The input comes from the cache, which is about twice as fast.
    const int64_t cost = turns * (kBlocks * own + kTokens / 2 + 4);
    if (cost >= least) continue;
    least = cost;
    best.features = own;
    best.tiles = tiles;
    best.stages = std::min(kMaxStages, kRingBytes / ((kBlocks * own + kTokens) * kAtoms * kAtomBytes));
  }
  return best;
}

template <int kTokens, int kBlocks, bool kGated>
cudaError_t Launch(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  const Tiling tiling = Cut<kTokens, kBlocks, kGated>(a, multiprocessors);
  CUtensorMap weight, input;
  cudaError_t error = MakeTensorMap(a.weight, a.out_features, a.in_features, tiling.features, &weight);
  if (error == cudaSuccess) error = MakeTensorMap(a.in, a.rows, a.in_features, kTokens, &input);
  if (error != cudaSuccess) return error;
  return LaunchEarly<SharedMemory::kMost>(StreamedLinearKernel<kTokens, kBlocks, kGated>,
                                          std::min(tiling.tiles, multiprocessors), kThreads, kSharedBytes, stream,
                                          weight, input, a, tiling);
}

template <int kTokens>
cudaError_t LaunchFor(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  if (a.is_gated) return Launch<kTokens, 2, true>(a, multiprocessors, stream);
  return a.out_features <= kProductFeatures * multiprocessors ? Launch<kTokens, 1, false>(a, multiprocessors, stream)
                                                              : Launch<kTokens, 2, false>(a, multiprocessors, stream);
}

}  // namespace

bool IsStreamed(const SkinnyLinearArguments& a, int compute_major) {
  return compute_major == 9 && HasFewRowsForm(a) && a.weight != nullptr && a.norm == nullptr && a.rows >= 1 &&
         a.rows <= kMaxStreamedRows && a.in_features % 8 == 0;
}

cudaError_t LaunchStreamedLinear(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  if (a.rows <= 8) return LaunchFor<8>(a, multiprocessors, stream);
  if (a.rows <= 16) return LaunchFor<16>(a, multiprocessors, stream);
  return LaunchFor<32>(a, multiprocessors, stream);
}

}  // namespace tandem
