#include "engine/cuda/tiled_linear.h"

#include <cuda.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/tensor_map.h"

// How it works. A block computes tiles of 128 rows times 256 features, one after the other. One thread orders copies of
// input and weights into a ring in shared memory, two groups of four warps multiply what has come, 64 rows each, and
// write through shared memory, by the copy engine too, while the next tile's operands come. Where a tile is gated, its
// features are 128 of the gate and the 128 that these open, so that both are in the same thread's registers.
//
// Two blocks, of one cluster, work on the rows of two tiles and the same features: each brings half of the weights, to
// both of them. Tiles that are computed at the same time lie in a square, as far as they can: what they read comes from
// the cache.

namespace tandem {
namespace {

namespace gmma = cute::SM90::GMMA;
using Barrier = cutlass::arch::ClusterTransactionBarrier;
using Product = gmma::MMA_64x256x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;

constexpr int kGroup = 128;  // Threads of a group of four warps.
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kClusterBlocks = 2;
constexpr int kGroupRows = 64;
constexpr int kTileRows = kConsumers * kGroupRows;
constexpr int kTileFeatures = 256;
constexpr int kPartFeatures = kTileFeatures / kClusterBlocks;  // That a block brings.
constexpr int kAtom = kMapColumns;                             // Input features of a stage.
constexpr int kAtomBytes = kAtom * 2;
constexpr int kInputBytes = kTileRows * kAtomBytes;
constexpr int kPartBytes = kPartFeatures * kAtomBytes;
constexpr int kStageBytes = kInputBytes + kClusterBlocks * kPartBytes;
constexpr int kAlignment = 1024;
constexpr int kSquare = 8;  // Pairs of tiles that lie one below the other and are computed at about the same time.

template <bool kGated>
struct Sizes {
  static constexpr int kOutColumns = kGated ? kTileFeatures / 2 : kTileFeatures;
  static constexpr int kStages = kGated ? 4 : 3;
  static constexpr int kBlockBytes = kGroupRows * kAtomBytes;  // Of 64 columns, staged for the copy engine.
  static constexpr int kStagedBytes = kOutColumns / kAtom * kBlockBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kConsumers * kStagedBytes + kAlignment;
};

// c += 16 input features at these places of shared memory.
template <size_t... kIndices>
__device__ __forceinline__ void MultiplyAddAsync(float (&c)[128], uint64_t input, uint64_t weight, bool is_first,
                                                 std::index_sequence<kIndices...>) {
  Product::fma(input, weight, c[kIndices]..., is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}

// A matrix of rows of kAtomBytes, as the copies leave it (128-byte swizzle), for the instruction.
__device__ __forceinline__ uint64_t MatrixAt(uint32_t shared) {
  constexpr uint64_t kEightRows = 8 * kAtomBytes / 16, kSwizzle128 = 1;
  return (shared & 0x3ffff) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

__device__ __forceinline__ void SyncGroup(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kGroup)); }

struct Tiles {
  int pairs = 0;     // Of tiles of rows.
  int features = 0;  // Tiles.
  __host__ __device__ int count() const { return pairs * features; }
  // The tile that a cluster's `number`th turn is.
  __device__ void At(int number, int& pair, int& feature) const {
    const int of_square = kSquare * features;
    const int first = number / of_square * kSquare, in_square = number % of_square;
    const int height = min(kSquare, pairs - first);
    pair = first + in_square % height;
    feature = in_square / height;
  }
};

template <bool kGated, bool kAdd>
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kThreads, 1)
    TiledLinearKernel(const __grid_constant__ CUtensorMap input_map, const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ CUtensorMap out_map, Tiles tiles, int half, int chunks) {
  using Size = Sizes<kGated>;
  constexpr int kStages = Size::kStages;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kStages], empty[kStages], residual[kConsumers];
  LetNextKernelBegin();
  uint8_t* const ring = shared + (kAlignment - SharedAddress(shared) % kAlignment) % kAlignment;
  const int group = static_cast<int>(threadIdx.x) / kGroup - 1;  // -1: the producer's.
  const int thread = threadIdx.x % kGroup;
  const int rank = blockIdx.x % kClusterBlocks;
  const int cluster = blockIdx.x / kClusterBlocks, clusters = gridDim.x / kClusterBlocks;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      Barrier::init(&full[stage], 1);
      Barrier::init(&empty[stage], kConsumers * kClusterBlocks);
    }
    for (uint64_t& barrier : residual) Barrier::init(&barrier, 1);
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_sync();

  if (group < 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (thread == 0) {
      constexpr uint64_t kNormal = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
      WaitForEarlierKernels();
      int stage = 0, turn = 0;
      for (int number = cluster; number < tiles.count(); number += clusters) {
        int pair, feature_tile;
        tiles.At(number, pair, feature_tile);
        const int row = (pair * kClusterBlocks + rank) * kTileRows;
        const int feature = kGated ? rank * half + feature_tile * kPartFeatures
                                   : feature_tile * kTileFeatures + rank * kPartFeatures;
        for (int chunk = 0; chunk < chunks; ++chunk) {
          if (turn > 0) Barrier::wait(&empty[stage], (turn - 1) & 1);
          Barrier::arrive_and_expect_tx(&full[stage], kStageBytes);
          uint8_t* const to = ring + stage * kStageBytes;
          cute::SM90_TMA_LOAD_2D::copy(&input_map, &full[stage], kNormal, to, chunk * kAtom, row);
          cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&weight_map, &full[stage], (1 << kClusterBlocks) - 1, kNormal,
                                                 to + kInputBytes + rank * kPartBytes, chunk * kAtom, feature);
          if (++stage == kStages) stage = 0, ++turn;
        }
      }
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    WaitForEarlierKernels();
    const int warp = thread / 32, lane = thread % 32;
    uint8_t* const staged = ring + kStages * kStageBytes + group * Size::kStagedBytes;
    const int own_row = warp * 16 + lane % 16;
    // Where this thread's row of the 16 columns from `column` on is staged, for matrices of 8 x 8.
    const auto staged_at = [&](int column) {
      const int piece = column % kAtom / 8 + lane / 16;
      return SharedAddress(staged) + column / kAtom * Size::kBlockBytes + own_row * kAtomBytes +
             (piece ^ own_row % 8) * 16;
    };
    float c[128];
    int stage = 0, turn = 0, last_stage = -1, done = 0;
    const auto release = [&](int of) { Barrier::arrive(&empty[of], thread, thread < kClusterBlocks); };
    for (int number = cluster; number < tiles.count(); number += clusters, ++done) {
      int pair, feature_tile;
      tiles.At(number, pair, feature_tile);
      const int row = (pair * kClusterBlocks + rank) * kTileRows + group * kGroupRows;
      const int column = feature_tile * Size::kOutColumns;
      if (thread == 0) {
        cute::tma_store_wait<0>();  // What the last tile staged has been read.
        if constexpr (kAdd) {
          constexpr uint64_t kNormal = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
          Barrier::arrive_and_expect_tx(&residual[group], Size::kStagedBytes);
          for (int block = 0; block < Size::kOutColumns / kAtom; ++block) {
            cute::SM90_TMA_LOAD_2D::copy(&out_map, &residual[group], kNormal, staged + block * Size::kBlockBytes,
                                         column + block * kAtom, row);
          }
        }
      }
      for (int chunk = 0; chunk < chunks; ++chunk) {
        Barrier::wait(&full[stage], turn & 1);
        const uint32_t input = SharedAddress(ring + stage * kStageBytes) + group * kGroupRows * kAtomBytes;
        const uint32_t weight = SharedAddress(ring + stage * kStageBytes) + kInputBytes;
#pragma unroll
        for (float& value : c) cute::warpgroup_fence_operand(value);
        cute::warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < kAtom / 16; ++k) {
          MultiplyAddAsync(c, MatrixAt(input + k * 32), MatrixAt(weight + k * 32), chunk == 0 && k == 0,
                           std::make_index_sequence<128>());
        }
        cute::warpgroup_commit_batch();
        cute::warpgroup_wait<1>();
        if (last_stage >= 0) release(last_stage);
        last_stage = stage;
        if (++stage == kStages) stage = 0, ++turn;
      }
      cute::warpgroup_wait<0>();
      release(last_stage);
      last_stage = -1;
#pragma unroll
      for (float& value : c) cute::warpgroup_fence_operand(value);

      if constexpr (kAdd) {
        Barrier::wait(&residual[group], done & 1);
      } else {
        SyncGroup(group);
      }
#pragma unroll
      for (int j = 0; j < Size::kOutColumns / 2; j += 8) {  // Eight sums of a thread are of 16 columns.
        if constexpr (kGated) {
#pragma unroll
          for (int i = 0; i < 8; ++i) c[j + i] = Silu(c[j + i]) * c[64 + j + i];
        }
        const uint32_t at = staged_at(2 * j);
        if constexpr (kAdd) {
          uint32_t added[4];
          LoadMatrices(added, at);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 value = UnpackPair(added[i]);
            c[j + 2 * i] += value.x;
            c[j + 2 * i + 1] += value.y;
          }
        }
        StoreMatrices(at, {PackPair(c[j], c[j + 1]), PackPair(c[j + 2], c[j + 3]), PackPair(c[j + 4], c[j + 5]),
                           PackPair(c[j + 6], c[j + 7])});
      }
      cute::tma_store_fence();
      SyncGroup(group);
      if (thread == 0) {
        for (int block = 0; block < Size::kOutColumns / kAtom; ++block) {
          cute::SM90_TMA_STORE_2D::copy(&out_map, staged + block * Size::kBlockBytes, column + block * kAtom, row);
        }
        cute::tma_store_arrive();
      }
    }
  }
  // The other block may still bring weights, and says what it has read.
  cute::cluster_sync();
}

template <bool kGated, bool kAdd>
cudaError_t Launch(const TiledLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  using Size = Sizes<kGated>;
  const int columns = kGated ? a.out_features / 2 : a.out_features;
  CUtensorMap input, weight, out;
  cudaError_t error = MakeTensorMap(a.in, a.rows, a.in_features, kTileRows, &input);
  if (error == cudaSuccess) error = MakeTensorMap(a.weight, a.out_features, a.in_features, kPartFeatures, &weight);
  if (error == cudaSuccess) error = MakeTensorMap(a.out, a.rows, columns, kGroupRows, &out);
  if (error != cudaSuccess) return error;
  Tiles tiles;
  tiles.pairs = (a.rows + kClusterBlocks * kTileRows - 1) / (kClusterBlocks * kTileRows);
  tiles.features = (columns + Size::kOutColumns - 1) / Size::kOutColumns;
  const int clusters = std::min(tiles.count(), multiprocessors / kClusterBlocks);
  return LaunchEarly<SharedMemory::kMost>(TiledLinearKernel<kGated, kAdd>, clusters * kClusterBlocks, kThreads,
                                          Size::kSharedBytes, stream, input, weight, out, tiles, columns,
                                          (a.in_features + kAtom - 1) / kAtom);
}

}  // namespace

bool IsTiled(const TiledLinearArguments& a, int compute_major, int) {
  const int columns = a.is_gated ? a.out_features / 2 : a.out_features;
  return compute_major == 9 && a.in_features % 8 == 0 && columns % 8 == 0 && !(a.add && a.is_gated) && a.rows >= 1024;
}

cudaError_t LaunchTiledLinear(const TiledLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  if (a.is_gated) return Launch<true, false>(a, multiprocessors, stream);
  return a.add ? Launch<false, true>(a, multiprocessors, stream) : Launch<false, false>(a, multiprocessors, stream);
}

}  // namespace tandem
