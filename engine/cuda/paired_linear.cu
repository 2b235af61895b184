#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // Products of 48 and 224 columns.
#include "engine/cuda/paired_linear.h"

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <algorithm>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <utility>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/hopper_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/streamed_linear.h"
#include "engine/cuda/tensor_map.h"

// How it works. A block computes a tile: all rows times some features. One thread orders copies of weights and input
// into a ring in shared memory, groups of four warps multiply what has come, 64 rows each, and write through shared
// memory. Of so many rows the input is as large as a block's weights, and the way from the cache is not much wider than
// that from memory. So two blocks, of one cluster, with neighbouring tiles bring half of the input each, to both of
// them; and where a layer has few features, two such pairs take half of the input features each, for twice as many
// output features. Their sums meet in the cache: who comes first leaves its own there, and the other one adds them.
//
// What counts is that the weights never stop coming: they do not depend on the kernel ahead, so a whole ring of them is
// ordered before that has ended. Rings are as large as they can be: the next kernel's blocks begin when these end, and
// what they bring then costs less than what a shorter ring would leave undone.

namespace tandem {
namespace {

namespace gmma = cute::SM90::GMMA;

constexpr int kClusterBlocks = 2;
constexpr int kGroupRows = 64;
constexpr int kMaxStages = 12;
constexpr int kSharedBytes = 226 << 10;
constexpr int kMostSplitColumns = 128;  // Of tiles whose input features are divided.

template <int kColumns>
struct Product;
template <>
struct Product<32> : gmma::MMA_64x32x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<48> : gmma::MMA_64x48x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<64> : gmma::MMA_64x64x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<96> : gmma::MMA_64x96x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<128> : gmma::MMA_64x128x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<192> : gmma::MMA_64x192x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<224> : gmma::MMA_64x224x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct Product<256> : gmma::MMA_64x256x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};

// c += of 16 input features at these places of shared memory.
template <int kColumns, size_t... kIndices>
__device__ __forceinline__ void MultiplyAddAsync(float (&c)[kColumns / 2], uint64_t input, uint64_t weight,
                                                 bool is_first, std::index_sequence<kIndices...>) {
  Product<kColumns>::fma(input, weight, c[kIndices]..., is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}

// How a layer is cut. kColumns: of a product; where kGated, those of the gate and those that these open. kParts: of the
// input features.
template <int kGroups_, int kColumns_, int kParts_, bool kGated_>
struct Cut {
  static constexpr int kGroups = kGroups_, kColumns = kColumns_, kParts = kParts_;
  static constexpr bool kGated = kGated_;
  static constexpr int kThreads = kGroups * kGroupThreads + 32;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kOut = kGated ? kColumns / 2 : kColumns;  // Features that a tile writes.
  static constexpr int kWeightBytes = kColumns * kAtomBytes;
  static constexpr int kStageBytes = kWeightBytes + kRows * kAtomBytes;
  static constexpr int kStagedStride = kOut * 2 + 16;  // Neighbours' rows lie in unlike banks.
  static constexpr int kStagedBytes = kRows * kStagedStride;
  static constexpr int kStages = std::min(kMaxStages, (kSharedBytes - kStagedBytes - kRingAlignment) / kStageBytes);
  static constexpr int kShared = kStages * kStageBytes + kStagedBytes + kRingAlignment;
  static_assert(kParts == 1 || (kColumns <= kMostSplitColumns && !kGated));
};

// A block's place.
struct Place {
  int rank = 0;                      // In the pair.
  int first = 0, step = 0, end = 0;  // Pairs of tiles that it takes.
  int first_chunk = 0, chunks = 0;   // Of the input features, kAtom each.
};

// Orders what the ring is to hold, of all tiles; one thread.
template <typename C>
__device__ __forceinline__ void Produce(const CUtensorMap& weight_map, const CUtensorMap& input_map, const Place& place,
                                        int half, uint8_t* ring, uint64_t* full, uint64_t* empty, bool has_begun) {
  const auto load_weights = [&](int pair, int chunk, int stage) {
    constexpr uint64_t kOnce = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST);
    Barrier::arrive_and_expect_tx(&full[stage], C::kStageBytes);
    const int feature = (pair * kClusterBlocks + place.rank) * C::kOut, column = (place.first_chunk + chunk) * kAtom;
    uint8_t* const to = ring + stage * C::kStageBytes;
    cute::SM90_TMA_LOAD_2D::copy(&weight_map, &full[stage], kOnce, to, column, feature);
    if constexpr (C::kGated) {
      cute::SM90_TMA_LOAD_2D::copy(&weight_map, &full[stage], kOnce, to + C::kWeightBytes / 2, column, half + feature);
    }
  };
  const auto load_input = [&](int chunk, int stage) {
    constexpr int kOwn = C::kRows / kClusterBlocks;
    cute::SM90_TMA_LOAD_MULTICAST_2D::copy(
        &input_map, &full[stage], (1 << kClusterBlocks) - 1, kNormalHint,
        ring + stage * C::kStageBytes + C::kWeightBytes + place.rank * kOwn * kAtomBytes,
        (place.first_chunk + chunk) * kAtom, place.rank * kOwn);
  };
  const int ahead = min(C::kStages, place.chunks);
  if (!has_begun) {  // The other block may not be there yet, and the kernel ahead may still write the input.
    for (int chunk = 0; chunk < ahead; ++chunk) load_weights(place.first, chunk, chunk);
    return;
  }
  WaitForEarlierKernels();
  RingPlace<C::kStages> at;
  for (int pair = place.first; pair < place.end; pair += place.step) {
    for (int chunk = 0; chunk < place.chunks; ++chunk) {
      if (pair != place.first || chunk >= ahead) {
        at.WaitEmpty(empty);
        load_weights(pair, chunk, at.stage);
      }
      load_input(chunk, at.stage);
      at.Next();
    }
  }
}

// Adds the sums of both halves of the input features, for a group's rows of a tile, of which this is `number`. False:
// the other half does it.
template <int kSums>
__device__ __forceinline__ bool AddHalves(const PairedExchange& exchange, int number, int group, uint32_t& ticket,
                                          float (&c)[kSums]) {
  constexpr uint32_t kIsWritten = 4;
  const int thread = threadIdx.x % kGroupThreads;
  uint32_t* const arrived = exchange.arrived + number;
  float* const partial = exchange.partial + int64_t{number} * kSums * kGroupThreads;
  const auto four = [&](int j) { return reinterpret_cast<float4*>(partial + j * kGroupThreads) + thread; };
  if (thread == 0) ticket = atomicAdd(arrived, 1);
  SyncGroup(group);
  if (ticket == 0) {
#pragma unroll
    for (int j = 0; j < kSums; j += 4) __stcg(four(j), make_float4(c[j], c[j + 1], c[j + 2], c[j + 3]));
    __threadfence();
    SyncGroup(group);
    if (thread == 0) atomicAdd(arrived, kIsWritten);
    return false;
  }
  if (thread == 0) {  // The other one is running, so this does not wait for long.
    uint32_t seen = 0;
    while ((seen & kIsWritten) == 0) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
    }
    *arrived = 0;
  }
  SyncGroup(group);
#pragma unroll
  for (int j = 0; j < kSums; j += 4) {
    const float4 other = __ldcg(four(j));
    c[j] += other.x, c[j + 1] += other.y, c[j + 2] += other.z, c[j + 3] += other.w;
  }
  return true;
}

// A group's rows of a tile, and who of its threads has which sums: c[j] is of the row Row(j) and the column Column(j).
struct TileView {
  int group = 0;
  int first_column = 0;       // Of the output.
  int rows = 0, columns = 0;  // Of the whole output.

  __device__ int thread() const { return threadIdx.x % kGroupThreads; }
  __device__ int Row(int j) const { return thread() / 32 * 16 + thread() % 32 / 4 + j % 4 / 2 * 8; }
  __device__ int Column(int j) const { return j / 4 * 8 + thread() % 4 * 2 + j % 2; }
  __device__ bool IsWanted(int row, int column) const {
    return group * kGroupRows + row < rows && first_column + column < columns;
  }
  __device__ int64_t At(int row, int column) const {
    return static_cast<int64_t>(group * kGroupRows + row) * columns + first_column + column;
  }
};

// The value of c[j], without what is added to it.
template <typename C>
__device__ __forceinline__ float ValueOf(const SkinnyLinearArguments& a, const TileView& tile,
                                         const float (&c)[C::kColumns / 2], int j) {
  if constexpr (C::kGated) {
    return Silu(c[j]) * c[C::kOut / 2 + j];
  } else {
    const int column = tile.first_column + tile.Column(j);
    return c[j] + (a.bias != nullptr && column < tile.columns ? __bfloat162float(a.bias[column]) : 0.0f);
  }
}

template <typename C>
__device__ __forceinline__ void WriteFloats(const SkinnyLinearArguments& a, const TileView& tile,
                                            const float (&c)[C::kColumns / 2]) {
#pragma unroll
  for (int j = 0; j < C::kOut / 2; j += 2) {
    if (!tile.IsWanted(tile.Row(j), tile.Column(j))) continue;
    *reinterpret_cast<float2*>(static_cast<float*>(a.out) + tile.At(tile.Row(j), tile.Column(j))) =
        make_float2(ValueOf<C>(a, tile, c, j), ValueOf<C>(a, tile, c, j + 1));
  }
}

// By way of `staged`, so that each thread reads and writes 16 bytes of a row at a time.
template <typename C>
__device__ __forceinline__ void WriteRounded(const SkinnyLinearArguments& a, const TileView& tile,
                                             const float (&c)[C::kColumns / 2], uint8_t* staged) {
  constexpr int kPieces = C::kOut / 8;
  const bool adds = !C::kGated && a.add;
  // Calls what it is given with each 16 bytes that this thread copies, there and here.
  const auto each_piece = [&](auto copy) {
#pragma unroll
    for (int i = tile.thread(); i < kGroupRows * kPieces; i += kGroupThreads) {
      const int row = i / kPieces, column = i % kPieces * 8;
      if (!tile.IsWanted(row, column)) continue;
      copy(reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(a.out) + tile.At(row, column)),
           reinterpret_cast<uint4*>(staged + row * C::kStagedStride + column * 2));
    }
  };
  if (adds) {
    each_piece([](const uint4* out, uint4* here) { *here = *out; });
    SyncGroup(tile.group);
  }
#pragma unroll
  for (int j = 0; j < C::kOut / 2; j += 2) {
    auto* const here = reinterpret_cast<uint32_t*>(staged + tile.Row(j) * C::kStagedStride + tile.Column(j) * 2);
    const float2 old = adds ? UnpackPair(*here) : make_float2(0, 0);
    *here = PackPair(ValueOf<C>(a, tile, c, j) + old.x, ValueOf<C>(a, tile, c, j + 1) + old.y);
  }
  SyncGroup(tile.group);
  each_piece([](uint4* out, const uint4* here) { *out = *here; });
  SyncGroup(tile.group);  // The next tile's sums may be staged.
}

// A group of four warps: multiplies what comes, and writes its rows of all tiles.
template <typename C>
__device__ __forceinline__ void Consume(const SkinnyLinearArguments& a, const PairedExchange& exchange,
                                        const Place& place, TileView tile, uint8_t* ring, uint64_t* full,
                                        uint64_t* empty, uint32_t& ticket) {
  float c[C::kColumns / 2];
  RingPlace<C::kStages> at;
  const auto release = [&](int stage) {
    Barrier::arrive(&empty[stage], tile.thread(), tile.thread() < kClusterBlocks);
  };
  for (int pair = place.first; pair < place.end; pair += place.step) {
    int last_stage = -1;
    for (int chunk = 0; chunk < place.chunks; ++chunk) {
      at.WaitFull(full);
      const uint32_t weight = SharedAddress(ring + at.stage * C::kStageBytes);
      const uint32_t input = weight + C::kWeightBytes + tile.group * kGroupRows * kAtomBytes;
      FenceOperands(c);
      cute::warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < kAtom / 16; ++k) {
        MultiplyAddAsync<C::kColumns>(c, MatrixAt(input + k * 32), MatrixAt(weight + k * 32), chunk == 0 && k == 0,
                                      std::make_index_sequence<C::kColumns / 2>());
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      if (last_stage >= 0) release(last_stage);
      last_stage = at.stage;
      at.Next();
    }
    cute::warpgroup_wait<0>();
    FenceOperands(c);
    release(last_stage);
    const int number = pair * kClusterBlocks + place.rank;
    if constexpr (C::kParts > 1) {
      if (!AddHalves(exchange, number * C::kGroups + tile.group, tile.group, ticket, c)) continue;
    }
    tile.first_column = number * C::kOut;
    if (a.is_float) {
      WriteFloats<C>(a, tile, c);
    } else {
      WriteRounded<C>(a, tile, c, ring + C::kStages * C::kStageBytes + tile.group * kGroupRows * C::kStagedStride);
    }
  }
}

template <typename C>
__device__ __forceinline__ Place PlaceOfBlock(int in_features, int out_columns) {
  const int cluster = blockIdx.x / kClusterBlocks, part = cluster % C::kParts;
  const int all_chunks = (in_features + kAtom - 1) / kAtom;
  Place place;
  place.rank = blockIdx.x % kClusterBlocks;
  place.first = cluster / C::kParts;
  place.step = gridDim.x / (kClusterBlocks * C::kParts);
  place.end = (out_columns + kClusterBlocks * C::kOut - 1) / (kClusterBlocks * C::kOut);
  place.first_chunk = all_chunks * part / C::kParts;
  place.chunks = all_chunks * (part + 1) / C::kParts - place.first_chunk;
  return place;
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    PairedLinearKernel(const __grid_constant__ CUtensorMap weight_map, const __grid_constant__ CUtensorMap input_map,
                       SkinnyLinearArguments a, PairedExchange exchange) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[C::kStages], empty[C::kStages];
  __shared__ uint32_t tickets[C::kGroups];
  LetNextKernelBegin();
  uint8_t* const ring = AlignedRing(shared);
  const int half = a.out_features / 2;  // Where kGated.
  const int out_columns = C::kGated ? half : a.out_features;
  const Place place = PlaceOfBlock<C>(a.in_features, out_columns);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < C::kStages; ++stage) {
      Barrier::init(&full[stage], 1);
      Barrier::init(&empty[stage], kClusterBlocks * C::kGroups);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  const int group = threadIdx.x / kGroupThreads;
  const bool produces = group == C::kGroups && threadIdx.x % kGroupThreads == 0;
  if (produces) Produce<C>(weight_map, input_map, place, half, ring, full, empty, /*has_begun=*/false);
  __syncwarp();
  cute::cluster_sync();
  if (produces) {
    Produce<C>(weight_map, input_map, place, half, ring, full, empty, /*has_begun=*/true);
  } else if (group < C::kGroups) {
    WaitForEarlierKernels();
    Consume<C>(a, exchange, place, {.group = group, .rows = a.rows, .columns = out_columns}, ring, full, empty,
               tickets[group]);
  }
  __syncwarp();
  cute::cluster_sync();  // The other block may still say what it has read.
}

template <typename C>
cudaError_t Launch(const SkinnyLinearArguments& a, const PairedExchange& exchange, int multiprocessors,
                   cudaStream_t stream) {
  CUtensorMap weight, input;
  cudaError_t error = MakeTensorMap(a.weight, a.out_features, a.in_features, C::kOut, &weight);
  if (error == cudaSuccess) error = MakeTensorMap(a.in, C::kRows, a.in_features, C::kRows / kClusterBlocks, &input);
  if (error != cudaSuccess) return error;
  const int columns = C::kGated ? a.out_features / 2 : a.out_features;
  const int pairs = (columns + kClusterBlocks * C::kOut - 1) / (kClusterBlocks * C::kOut);
  const int clusters = std::min(pairs * C::kParts, multiprocessors / kClusterBlocks);
  return LaunchEarlyClusters<SharedMemory::kMost>(PairedLinearKernel<C>, clusters, kClusterBlocks, C::kThreads,
                                                  C::kShared, stream, weight, input, a, exchange);
}

// Finds the cut that takes the shortest time, by a model of the time of an H100 in us, and launches it.
class Chooser {
 public:
  Chooser(const SkinnyLinearArguments& a, int multiprocessors) : a_(a), multiprocessors_(multiprocessors) {}

  template <typename C>
  void Offer() {
    constexpr double kMemory = 3.05e6, kWay = 95e3;  // Bytes a us: of all, and into one multiprocessor.
    constexpr double kExchange = 2.3;
    const int columns = C::kGated ? a_.out_features / 2 : a_.out_features;
    const int pairs = (columns + kClusterBlocks * C::kOut - 1) / (kClusterBlocks * C::kOut);
    const int clusters = std::min(pairs * C::kParts, multiprocessors_ / kClusterBlocks);
    // There is room for the sums of as many tiles as there can be when each block has one; and each half has features.
    if (C::kParts > 1 && (pairs * C::kParts > clusters || a_.in_features <= kAtom)) return;
    const int turns = (pairs * C::kParts + clusters - 1) / clusters;
    const double chunk = std::max(clusters * kClusterBlocks * double{C::kWeightBytes} / kMemory, C::kStageBytes / kWay);
    const double chunks = static_cast<double>(a_.in_features) / kAtom / C::kParts;
    const double time = turns * chunks * chunk + (C::kParts > 1 ? kExchange : 0);
    if (time >= least_) return;
    least_ = time;
    launch_ = &Launch<C>;
  }
  cudaError_t Run(const PairedExchange& exchange, cudaStream_t stream) const {
    return launch_(a_, exchange, multiprocessors_, stream);
  }

 private:
  const SkinnyLinearArguments& a_;
  const int multiprocessors_;
  double least_ = 1e30;
  cudaError_t (*launch_)(const SkinnyLinearArguments&, const PairedExchange&, int, cudaStream_t) = nullptr;
};

template <int kGroups, int kParts, bool kGated, int... kColumns>
void OfferAll(Chooser& chooser, std::integer_sequence<int, kColumns...>) {
  (chooser.Offer<Cut<kGroups, kColumns, kParts, kGated>>(), ...);
}

template <int kGroups>
cudaError_t LaunchFor(const SkinnyLinearArguments& a, const PairedExchange& exchange, int multiprocessors,
                      cudaStream_t stream) {
  Chooser chooser(a, multiprocessors);
  if (a.is_gated) {
    OfferAll<kGroups, 1, true>(chooser, std::integer_sequence<int, 96, 128, 192, 224, 256>());
  } else {
    OfferAll<kGroups, 1, false>(chooser, std::integer_sequence<int, 32, 48, 64, 96, 128>());
    OfferAll<kGroups, 2, false>(chooser, std::integer_sequence<int, 64, 96, kMostSplitColumns>());
  }
  return chooser.Run(exchange, stream);
}

}  // namespace

bool IsPaired(const SkinnyLinearArguments& a, int compute_major) {
  return compute_major == 9 && HasFewRowsForm(a) && a.weight != nullptr && a.norm == nullptr &&
         a.rows > kMaxStreamedRows && a.rows <= kMaxPairedRows && a.in_features % 8 == 0 &&
         a.out_features % (a.is_gated ? 16 : 8) == 0;
}

// Tiles that are computed by halves are at most half as many as the blocks.
int64_t PairedPartialFloats(int multiprocessors) {
  return int64_t{multiprocessors} / 2 * kMaxPairedRows * kMostSplitColumns;
}
int64_t PairedArrived(int multiprocessors) { return int64_t{multiprocessors} / 2 * (kMaxPairedRows / kGroupRows); }

cudaError_t LaunchPairedLinear(const SkinnyLinearArguments& a, const PairedExchange& exchange, int multiprocessors,
                               cudaStream_t stream) {
  return a.rows <= kGroupRows ? LaunchFor<1>(a, exchange, multiprocessors, stream)
                              : LaunchFor<2>(a, exchange, multiprocessors, stream);
}

}  // namespace tandem
