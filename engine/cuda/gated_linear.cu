#include "engine/cuda/gated_linear.h"

#include <cuda.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/hopper_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/tensor_map.h"

// How it works. A block computes tiles of 128 rows times 128 columns, one after the other: products with 128 features
// of the gate and the 128 that these open, so that both are in the same thread's registers. One thread orders copies of
// input and weights into a ring in shared memory, two groups of four warps multiply what has come, 64 rows each, and
// write through shared memory, by the copy engine too, while the next tile's operands come.
//
// Two blocks, of one cluster, work on the rows of two tiles and the same columns: one brings the gate's weights and one
// the others, to both of them. Tiles that are computed at the same time lie in a square, as far as they can: what they
// read comes from the cache.

namespace tandem {
namespace {

namespace gmma = cute::SM90::GMMA;
using Product = gmma::MMA_64x256x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kClusterBlocks = 2;
constexpr int kGroupRows = 64;
constexpr int kTileRows = kConsumers * kGroupRows;
constexpr int kTileColumns = 128;
constexpr int kInputBytes = kTileRows * kAtomBytes;
constexpr int kPartBytes = kTileColumns * kAtomBytes;  // Of the gate's weights, and of the others.
constexpr int kStageBytes = kInputBytes + kClusterBlocks * kPartBytes;
constexpr int kStages = 4;
constexpr int kStagedAtomBytes = kGroupRows * kAtomBytes;  // Of what a group writes.
constexpr int kStagedBytes = kTileColumns / kAtom * kStagedAtomBytes;
constexpr int kSharedBytes = kStages * kStageBytes + kConsumers * kStagedBytes + kRingAlignment;
constexpr int kSquare = 8;  // Pairs of tiles that lie one below the other and are computed at about the same time.

struct Tiles {
  int pairs = 0;  // Of tiles of rows.
  int columns = 0;
  __host__ __device__ int count() const { return pairs * columns; }
  // The pair and the column of a cluster's tiles.
  __device__ void At(int number, int& pair, int& column) const {
    const int of_square = kSquare * columns;
    const int first = number / of_square * kSquare, in_square = number % of_square;
    const int height = min(kSquare, pairs - first);
    pair = first + in_square % height;
    column = in_square / height;
  }
};

// c += 16 input features at these places of shared memory.
template <size_t... kIndices>
__device__ __forceinline__ void MultiplyAddAsync(float (&c)[128], uint64_t input, uint64_t weight, bool is_first,
                                                 std::index_sequence<kIndices...>) {
  Product::fma(input, weight, c[kIndices]..., is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}

__global__ void __launch_bounds__(kThreads, 1)
    GatedLinearKernel(const __grid_constant__ CUtensorMap input_map, const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ CUtensorMap out_map, Tiles tiles, int columns, int chunks) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  LetNextKernelBegin();
  uint8_t* const ring = AlignedRing(shared);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads - 1;  // -1: the producer's.
  const int thread = threadIdx.x % kGroupThreads;
  const int rank = blockIdx.x % kClusterBlocks;
  const int cluster = blockIdx.x / kClusterBlocks, clusters = gridDim.x / kClusterBlocks;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      Barrier::init(&full[stage], 1);
      Barrier::init(&empty[stage], kConsumers * kClusterBlocks);
    }
    cutlass::arch::fence_barrier_init();
  }
  cute::cluster_sync();

  RingPlace<kStages> place;
  if (group < 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (thread == 0) {
      WaitForEarlierKernels();
      for (int number = cluster; number < tiles.count(); number += clusters) {
        int pair, column;
        tiles.At(number, pair, column);
        const int row = (pair * kClusterBlocks + rank) * kTileRows;
        const int feature = rank * columns + column * kTileColumns;
        for (int chunk = 0; chunk < chunks; ++chunk) {
          place.WaitEmpty(empty);
          Barrier::arrive_and_expect_tx(&full[place.stage], kStageBytes);
          uint8_t* const to = ring + place.stage * kStageBytes;
          cute::SM90_TMA_LOAD_2D::copy(&input_map, &full[place.stage], kNormalHint, to, chunk * kAtom, row);
          cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&weight_map, &full[place.stage], (1 << kClusterBlocks) - 1,
                                                 kNormalHint, to + kInputBytes + rank * kPartBytes, chunk * kAtom,
                                                 feature);
          place.Next();
        }
      }
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    WaitForEarlierKernels();
    uint8_t* const staged = ring + kStages * kStageBytes + group * kStagedBytes;
    float c[128];
    int last_stage = -1;
    const auto release = [&](int stage) { Barrier::arrive(&empty[stage], thread, thread < kClusterBlocks); };
    for (int number = cluster; number < tiles.count(); number += clusters) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        place.WaitFull(full);
        const uint32_t weight = SharedAddress(ring + place.stage * kStageBytes) + kInputBytes;
        const uint32_t input = weight - kInputBytes + group * kGroupRows * kAtomBytes;
        FenceOperands(c);
        cute::warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < kAtom / 16; ++k) {
          MultiplyAddAsync(c, MatrixAt(input + k * 32), MatrixAt(weight + k * 32), chunk == 0 && k == 0,
                           std::make_index_sequence<128>());
        }
        cute::warpgroup_commit_batch();
        cute::warpgroup_wait<1>();
        if (last_stage >= 0) release(last_stage);
        last_stage = place.stage;
        place.Next();
      }
      cute::warpgroup_wait<0>();
      FenceOperands(c);
      release(last_stage);
      last_stage = -1;

      if (thread == 0) cute::tma_store_wait<0>();  // What the last tile staged has been read.
      SyncGroup(group);
#pragma unroll
      for (int j = 0; j < kTileColumns / 2; j += 8) {  // Eight sums of a thread are of 16 columns.
        float value[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = Silu(c[j + i]) * c[64 + j + i];
        StoreMatrices(StagedAt<kStagedAtomBytes>(SharedAddress(staged), thread, 2 * j),
                      {PackPair(value[0], value[1]), PackPair(value[2], value[3]), PackPair(value[4], value[5]),
                       PackPair(value[6], value[7])});
      }
      cute::tma_store_fence();
      SyncGroup(group);
      if (thread == 0) {
        int pair, column;
        tiles.At(number, pair, column);
        const int row = (pair * kClusterBlocks + rank) * kTileRows + group * kGroupRows;
        for (int atom = 0; atom < kTileColumns / kAtom; ++atom) {
          cute::SM90_TMA_STORE_2D::copy(&out_map, staged + atom * kStagedAtomBytes,
                                        column * kTileColumns + atom * kAtom, row);
        }
        cute::tma_store_arrive();
      }
    }
  }
  if (thread == 0) cute::tma_store_wait<0>();  // The last tile is read, too, before this memory is another block's.
  __syncwarp();
  // The other block may still bring weights, and says what it has read.
  cute::cluster_sync();
}

}  // namespace

bool HasGatedLinear(const GatedLinearArguments& a, int compute_major) {
  return compute_major == 9 && a.in_features % 8 == 0 && a.columns % 8 == 0 && a.rows >= 1024;
}

cudaError_t LaunchGatedLinear(const GatedLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  CUtensorMap input, weight, out;
  cudaError_t error = MakeTensorMap(a.in, a.rows, a.in_features, kTileRows, &input);
  if (error == cudaSuccess) error = MakeTensorMap(a.weight, 2 * a.columns, a.in_features, kTileColumns, &weight);
  if (error == cudaSuccess) error = MakeTensorMap(a.out, a.rows, a.columns, kGroupRows, &out);
  if (error != cudaSuccess) return error;
  Tiles tiles;
  tiles.pairs = (a.rows + kClusterBlocks * kTileRows - 1) / (kClusterBlocks * kTileRows);
  tiles.columns = (a.columns + kTileColumns - 1) / kTileColumns;
  const int clusters = std::min(tiles.count(), multiprocessors / kClusterBlocks);
  return LaunchEarlyClusters<SharedMemory::kMost>(GatedLinearKernel, clusters, kClusterBlocks, kThreads, kSharedBytes,
                                                  stream, input, weight, out, tiles, a.columns,
                                                  (a.in_features + kAtom - 1) / kAtom);
}

}  // namespace tandem
