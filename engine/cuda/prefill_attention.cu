#include "engine/cuda/prefill_attention.h"

#include <cuda.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <cmath>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/hopper_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/tensor_map.h"

// How it works (after FlashAttention-3, https://arxiv.org/abs/2407.08608). A block takes a tile of queries for one KV
// head, the next that nobody has taken, and all query heads that share the KV head: two groups of four warps have 64
// pairs of row and head each. Four warps order copies of queries and of keys and values, from the pages where they lie,
// up to 128 tokens at a time, the last ones first. The groups multiply in turn: while one's products run on the tensor
// cores the other one computes exponentials. Within a group the scores of the next tokens are multiplied together with
// the values of the last ones.
//
// Sums of exponentials are in f32, relative to the largest score so far, or a little less; probabilities are rounded to
// bf16.

namespace tandem {
namespace {

namespace gmma = cute::SM90::GMMA;

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kGroupPairs = 64;  // Of row and query head.
constexpr int kTileTokens = 128;
constexpr int kStages = 2;                             // Of queries, of keys and of values.
constexpr int kCopiers = 2;                            // Warps that bring keys, and as many that bring values.
constexpr int kQueryBytes = kGroupPairs * kAtomBytes;  // Of an atom's columns.
constexpr int kTokenBytes = kTileTokens * kAtomBytes;
constexpr float kNone = -INFINITY;
constexpr float kSlack = 8;

// What depends on the head's size: kAtoms times kAtom.
template <int kAtoms>
struct Sizes {
  static constexpr int kQueries = kAtoms * kQueryBytes;  // Of a group.
  static constexpr int kTokens = kAtoms * kTokenBytes;   // Keys, or values.
  static constexpr int kShared = kStages * (kConsumers * kQueries + 2 * kTokens) + kRingAlignment;
};

using ScoreProduct = gmma::MMA_64x128x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;
template <int kAtoms>
struct ValueProduct;
template <>
struct ValueProduct<1> : gmma::MMA_64x64x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::MN> {};
template <>
struct ValueProduct<2> : gmma::MMA_64x128x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::MN> {};

// As MatrixAt, of one whose columns are multiplied by; the second kAtom of them lie kTokenBytes behind the first.
__device__ __forceinline__ uint64_t TransposedAt(uint32_t shared) {
  constexpr uint64_t kEightRows = 8 * kAtomBytes / 16, kSwizzle128 = 1, kNextAtom = kTokenBytes / 16;
  return (shared & 0x3ffff) >> 4 | kNextAtom << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

template <size_t... kIndices>
__device__ __forceinline__ void MultiplyScores(float (&scores)[kTileTokens / 2], uint64_t queries, uint64_t keys,
                                               bool is_first, std::index_sequence<kIndices...>) {
  ScoreProduct::fma(queries, keys, scores[kIndices]..., is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}
template <int kAtoms, size_t... kIndices>
__device__ __forceinline__ void MultiplyValues(float (&sums)[kAtoms * 32], const uint32_t* weights, uint64_t values,
                                               bool is_first, std::index_sequence<kIndices...>) {
  ValueProduct<kAtoms>::fma(weights[0], weights[1], weights[2], weights[3], values, sums[kIndices]...,
                            is_first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One);
}

// Named barriers behind those of the groups: for whose turn it is to multiply, and of the producers.
constexpr int kProducersBarrier = 1 + 2 * kConsumers;
__device__ __forceinline__ void WaitForTurn(int group) {
  SyncNamed(1 + kConsumers + group, kConsumers * kGroupThreads);
}
__device__ __forceinline__ void GiveTurn(int group) { ArriveNamed(1 + kConsumers + group, kConsumers * kGroupThreads); }

// What the kernel is told.
struct Call {
  const PrefillTile* tiles = nullptr;
  int32_t* taken = nullptr;
  const int32_t* page_table = nullptr;
  __nv_bfloat16* out = nullptr;
  int num_tiles = 0, kv_heads = 0;
  int group_heads = 0;  // Query heads of a KV head.
  int group_rows = 0;   // That a group of warps takes, with as many heads.
  int page_tokens = 0;
  int box_tokens = 0;   // Of a copy: divides page_tokens.
  int tile_tokens = 0;  // The largest multiple of box_tokens up to kTileTokens.
  float scale = 0;      // Of scores, times log2(e).
};

// A tile and a KV head.
struct Work {
  PrefillTile tile;
  int kv_head = 0;
  int steps = 0;  // Of tile_tokens; 0: there is no more work.
};

struct Barriers {
  uint64_t queries_full[kStages], queries_empty[kStages], keys_full[kStages], keys_empty[kStages], values_full[kStages],
      values_empty[kStages];
};

// Orders all copies; four warps: two for keys, two for values, which share the columns of heads of two atoms, and the
// boxes of others. The first one also takes work, for all, and orders the copies of queries.
template <int kAtoms>
__device__ __forceinline__ void Produce(const CUtensorMap& query_map, const CUtensorMap& page_map, const Call& call,
                                        uint8_t* queries, uint8_t* keys, uint8_t* values, Work* works, int32_t* taken,
                                        Barriers& barriers) {
  using Size = Sizes<kAtoms>;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int is_value = warp / 2, part = warp % 2;
  const int atom = kAtoms == 2 ? part : 0;
  const int boxes = call.tile_tokens / call.box_tokens, boxes_of_page = call.page_tokens / call.box_tokens;
  uint8_t* const to = (is_value ? values : keys) + atom * kTokenBytes;
  uint64_t* const full = is_value ? barriers.values_full : barriers.keys_full;
  uint64_t* const empty = is_value ? barriers.values_empty : barriers.keys_empty;
  RingPlace<kStages> query_place, place;
  const auto load = [&](const Work& work, int step) {
    // Boxes of this warp: all, or each second one.
    const auto own = [&](int i) { return kAtoms == 2 ? i : 2 * i + part; };
    const int left = (work.tile.context_tokens - step * call.tile_tokens + call.box_tokens - 1) / call.box_tokens;
    const int wanted = min(boxes, left), count = kAtoms == 2 ? wanted : (wanted + 1 - part) / 2;
    place.WaitEmpty(empty);
    if (lane == 0) Barrier::arrive_and_expect_tx(&full[place.stage], count * call.box_tokens * kAtomBytes);
    for (int done = 0; done < count; done += 32) {
      const int number = step * boxes + own(done + lane);
      int page = 0;
      if (done + lane < count) {
        page = call.page_table[work.tile.first_page + (boxes_of_page == 1 ? number : number / boxes_of_page)];
      }
      for (int i = done; i < min(count, done + 32); ++i) {
        const int page_of_box = __shfl_sync(0xffffffffu, page, i - done);
        const int token = boxes_of_page == 1 ? 0 : (step * boxes + own(i)) % boxes_of_page * call.box_tokens;
        if (lane == 0) {
          cute::SM90_TMA_LOAD_5D::copy(&page_map, &full[place.stage], kNormalHint,
                                       to + place.stage * Size::kTokens + own(i) * call.box_tokens * kAtomBytes,
                                       atom * kAtom, token, work.kv_head, is_value, page_of_box);
        }
      }
    }
    place.Next();
  };
  if (threadIdx.x == 0) taken[0] = atomicAdd(call.taken, 1);
  for (int turn = 0;; ++turn) {
    SyncNamed(kProducersBarrier, kGroupThreads);
    const int number = __shfl_sync(0xffffffffu, taken[turn % 2], 0);
    Work work;
    if (number < call.num_tiles * call.kv_heads) {
      work.tile = call.tiles[number / call.kv_heads];
      work.kv_head = number % call.kv_heads;
      work.steps = (work.tile.first_position + work.tile.num_rows + call.tile_tokens - 1) / call.tile_tokens;
    }
    if (warp == 0) {
      query_place.WaitEmpty(barriers.queries_empty);
      if (lane == 0) {
        works[query_place.stage] = work;
        uint64_t* const queries_full = &barriers.queries_full[query_place.stage];
        if (work.steps == 0) {
          Barrier::arrive(queries_full);
        } else {
          taken[(turn + 1) % 2] = atomicAdd(call.taken, 1);
          Barrier::arrive_and_expect_tx(queries_full,
                                        kConsumers * kAtoms * call.group_rows * call.group_heads * kAtomBytes);
#pragma unroll
          for (int i = 0; i < kConsumers * kAtoms; ++i) {
            const int group = i / kAtoms, query_atom = i % kAtoms;
            cute::SM90_TMA_LOAD_3D::copy(
                &query_map, queries_full, kNormalHint,
                queries + (query_place.stage * kConsumers + group) * Size::kQueries + query_atom * kQueryBytes,
                query_atom * kAtom, work.kv_head * call.group_heads, work.tile.first_row + group * call.group_rows);
          }
        }
      }
      query_place.Next();
      __syncwarp();
    }
    if (work.steps == 0) return;
    for (int step = work.steps - 1; step >= 0; --step) load(work, step);
  }
}

// A group's state of two rows of pairs, those of a thread: `lane / 4` and eight further.
struct Softmax {
  float largest[2] = {kNone, kNone}, sum[2] = {0, 0};

  // Scores become exponentials; returns what sums so far are multiplied with.
  __device__ __forceinline__ float2 Update(float (&scores)[kTileTokens / 2], float scale) {
    float factor[2], offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int j = 2 * half; j < kTileTokens / 2; j += 4) most = fmaxf(most, fmaxf(scores[j], scores[j + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      // What is a little larger does not change what sums are relative to: no exponential is over 2^kSlack.
      if ((most - largest[half]) * scale <= kSlack) most = largest[half];
      offset[half] = most == kNone ? 0 : most * scale;  // Nothing was seen so far.
      factor[half] = most == largest[half] ? 1 : Exp2(largest[half] * scale - offset[half]);
      largest[half] = most;
      sum[half] *= factor[half];
    }
#pragma unroll
    for (int j = 0; j < kTileTokens / 2; ++j) {
      scores[j] = Exp2(scores[j] * scale - offset[j % 4 / 2]);
      sum[j % 4 / 2] += scores[j];
    }
    return make_float2(factor[0], factor[1]);
  }
  // The whole rows' sums.
  __device__ __forceinline__ float2 Sums() const {
    float whole[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      whole[half] = sum[half] + __shfl_xor_sync(0xffffffffu, sum[half], 1);
      whole[half] += __shfl_xor_sync(0xffffffffu, whole[half], 2);
    }
    return make_float2(whole[0], whole[1]);
  }
};

template <size_t kCount>
__device__ __forceinline__ void Scale(float (&sums)[kCount], const float2& factor) {
#pragma unroll
  for (int j = 0; j < static_cast<int>(kCount); ++j) sums[j] *= j % 4 / 2 == 0 ? factor.x : factor.y;
}

// Multiplies what Produce brings; one group of warps.
template <int kAtoms>
__device__ __forceinline__ void Consume(const Call& call, int group, uint8_t* queries, uint8_t* keys, uint8_t* values,
                                        const Work* works, Barriers& barriers) {
  using Size = Sizes<kAtoms>;
  constexpr int kHeadDim = kAtoms * kAtom;
  const int thread = threadIdx.x % kGroupThreads, warp = thread / 32, lane = thread % 32;
  const int own_pair = warp * 16 + lane / 4;  // And eight further.
  RingPlace<kStages> query_place, key_place, value_place;
  float scores[kTileTokens / 2], sums[kHeadDim / 2];
  uint32_t weights[kTileTokens / 4];
  const auto release = [&](RingPlace<kStages>& place, uint64_t* empty) {
    if (thread == 0) Barrier::arrive(&empty[place.stage]);
    place.Next();
  };
  const auto start_scores = [&](uint32_t query) {
    const uint32_t key = SharedAddress(keys + key_place.stage * Size::kTokens);
    FenceOperands(scores);
    cute::warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int atom = k * 16 / kAtom, within = k * 16 % kAtom * 2;
      MultiplyScores(scores, MatrixAt(query + atom * kQueryBytes + within), MatrixAt(key + atom * kTokenBytes + within),
                     k == 0, std::make_index_sequence<kTileTokens / 2>());
    }
    cute::warpgroup_commit_batch();
  };
  const auto start_values = [&](bool is_first) {
    const uint32_t value = SharedAddress(values + value_place.stage * Size::kTokens);
    FenceOperands(sums);
    FenceOperands(weights);
    cute::warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < kTileTokens / 16; ++k) {
      MultiplyValues<kAtoms>(sums, weights + 4 * k, TransposedAt(value + k * 16 * kAtomBytes), is_first && k == 0,
                             std::make_index_sequence<kHeadDim / 2>());
    }
    cute::warpgroup_commit_batch();
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int j = 0; j < kTileTokens / 4; ++j) weights[j] = PackPair(scores[2 * j], scores[2 * j + 1]);
  };

  if (group == 1) GiveTurn(0);
  for (;;) {
    query_place.WaitFull(barriers.queries_full);
    const Work work = works[query_place.stage];
    if (work.steps == 0) return;
    uint8_t* const own_queries = queries + (query_place.stage * kConsumers + group) * Size::kQueries;
    const uint32_t query = SharedAddress(own_queries);
    const int first_of_group = work.tile.first_position + group * call.group_rows;
    const int last_seen[2] = {first_of_group + own_pair / call.group_heads,
                              first_of_group + (own_pair + 8) / call.group_heads};
    const auto mask = [&](int step) {
      const int first = step * call.tile_tokens;
      if (first + kTileTokens <= first_of_group + 1 && call.tile_tokens == kTileTokens) return;
#pragma unroll
      for (int j = 0; j < kTileTokens / 2; ++j) {
        const int column = j / 4 * 8 + lane % 4 * 2 + j % 2;
        if (column >= call.tile_tokens || first + column > last_seen[j % 4 / 2]) scores[j] = kNone;
      }
    };
    Softmax softmax;
    int step = work.steps - 1;
    key_place.WaitFull(barriers.keys_full);
    WaitForTurn(group);
    start_scores(query);
    GiveTurn(1 - group);
    cute::warpgroup_wait<0>();
    FenceOperands(scores);
    release(key_place, barriers.keys_empty);
    mask(step);
    softmax.Update(scores, call.scale);
    pack_weights();
    // Behind the context lies anything, which a weight of zero does not undo if it is no number.
    if (const int seen = work.tile.context_tokens - step * call.tile_tokens; seen < call.tile_tokens) {
      value_place.WaitFull(barriers.values_full);
      const uint32_t value = SharedAddress(values + value_place.stage * Size::kTokens);
      for (int at = seen * kAtomBytes + thread * 16; at < kTokenBytes; at += kGroupThreads * 16) {
#pragma unroll
        for (int atom = 0; atom < kAtoms; ++atom) StoreShared(value + atom * kTokenBytes + at, make_uint4(0, 0, 0, 0));
      }
      cute::tma_store_fence();
      SyncGroup(group);
    }
    for (--step; step >= 0; --step) {
      key_place.WaitFull(barriers.keys_full);
      WaitForTurn(group);
      start_scores(query);
      value_place.WaitFull(barriers.values_full);
      start_values(step == work.steps - 2);
      GiveTurn(1 - group);
      cute::warpgroup_wait<1>();
      FenceOperands(scores);
      release(key_place, barriers.keys_empty);
      mask(step);
      const float2 factor = softmax.Update(scores, call.scale);
      cute::warpgroup_wait<0>();
      FenceOperands(sums);
      FenceOperands(weights);
      release(value_place, barriers.values_empty);
      if (__any_sync(0xffffffffu, factor.x != 1 || factor.y != 1)) Scale(sums, factor);
      pack_weights();
    }
    value_place.WaitFull(barriers.values_full);
    start_values(work.steps == 1);
    const float2 whole = softmax.Sums();
    cute::warpgroup_wait<0>();
    FenceOperands(sums);
    release(value_place, barriers.values_empty);
    Scale(sums, make_float2(1 / whole.x, 1 / whole.y));

    // Through the memory of the queries, so that rows are written as a whole.
    SyncGroup(group);
#pragma unroll
    for (int j = 0; j < kHeadDim / 2; j += 8) {
      StoreMatrices(StagedAt<kQueryBytes>(query, thread, 2 * j),
                    {PackPair(sums[j], sums[j + 1]), PackPair(sums[j + 2], sums[j + 3]),
                     PackPair(sums[j + 4], sums[j + 5]), PackPair(sums[j + 6], sums[j + 7])});
    }
    cute::tma_store_fence();
    SyncGroup(group);
    constexpr int kPieces = kHeadDim / 8;
    const int heads = call.kv_heads * call.group_heads;
#pragma unroll 4
    for (int i = thread; i < kGroupPairs * kPieces; i += kGroupThreads) {
      const int pair = i / kPieces, piece = i % kPieces, atom = piece / 8;
      const int row = group * call.group_rows + pair / call.group_heads;
      if (pair >= call.group_rows * call.group_heads || row >= work.tile.num_rows) continue;
      const int head = work.kv_head * call.group_heads + pair % call.group_heads;
      const uint4 value = LoadShared(query + atom * kQueryBytes + pair * kAtomBytes + (piece % 8 ^ pair % 8) * 16);
      *reinterpret_cast<uint4*>(call.out + (static_cast<int64_t>(work.tile.first_row + row) * heads + head) * kHeadDim +
                                piece * 8) = value;
    }
    SyncGroup(group);
    release(query_place, barriers.queries_empty);
  }
}

template <int kAtoms>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillAttentionKernel(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap page_map,
                           Call call) {
  using Size = Sizes<kAtoms>;
  extern __shared__ uint8_t shared[];
  __shared__ Barriers barriers;
  __shared__ Work works[kStages];
  __shared__ int32_t taken[2];  // Of the last turn and this one.
  LetNextKernelBegin();
  uint8_t* const queries = AlignedRing(shared);
  uint8_t* const keys = queries + kStages * kConsumers * Size::kQueries;
  uint8_t* const values = keys + kStages * Size::kTokens;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads - 1;  // -1: the producer's.
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      Barrier::init(&barriers.queries_full[stage], 1);
      for (uint64_t* full : {barriers.keys_full, barriers.values_full}) Barrier::init(&full[stage], kCopiers);
      for (uint64_t* empty : {barriers.queries_empty, barriers.keys_empty, barriers.values_empty}) {
        Barrier::init(&empty[stage], kConsumers);
      }
    }
    cutlass::arch::fence_barrier_init();
  }
  // What no copy writes to is multiplied, too.
  if (call.tile_tokens < kTileTokens) {
    for (int at = threadIdx.x * 16; at < kStages * Size::kTokens; at += kThreads * 16) {
      StoreShared(SharedAddress(values) + at, make_uint4(0, 0, 0, 0));
    }
    cute::tma_store_fence();
  }
  __syncthreads();
  if (group < 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    WaitForEarlierKernels();
    Produce<kAtoms>(query_map, page_map, call, queries, keys, values, works, taken, barriers);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    WaitForEarlierKernels();
    Consume<kAtoms>(call, group, queries, keys, values, works, barriers);
  }
}

// The largest divisor of `page_tokens` that is at most kTileTokens.
int BoxTokens(int page_tokens) {
  int box = std::min(page_tokens, kTileTokens);
  while (page_tokens % box != 0) --box;
  return box;
}

template <int kAtoms>
cudaError_t Launch(const PrefillAttentionArguments& a, int multiprocessors, cudaStream_t stream) {
  constexpr int64_t kHeadBytes = kAtoms * kAtomBytes;
  const HeadShape& shape = a.shape;
  Call call;
  call.tiles = a.tiles;
  call.taken = a.taken;
  call.page_table = a.page_table;
  call.out = a.out;
  call.num_tiles = a.num_tiles;
  call.kv_heads = shape.num_kv_heads;
  call.group_heads = shape.num_heads / shape.num_kv_heads;
  call.group_rows = PrefillTileRows(shape) / kConsumers;
  call.page_tokens = a.pages.page_tokens;
  call.box_tokens = BoxTokens(call.page_tokens);
  call.tile_tokens = kTileTokens / call.box_tokens * call.box_tokens;
  call.scale = 1.4426950408889634f / std::sqrt(static_cast<float>(shape.head_dim));
  CUtensorMap queries, pages;
  const int64_t row_bytes = int64_t{shape.num_heads + 2 * shape.num_kv_heads} * kHeadBytes;
  cudaError_t error = MakeTensorMap(a.qkv, {shape.head_dim, shape.num_heads, a.rows}, {kHeadBytes, row_bytes},
                                    {call.group_heads, call.group_rows}, &queries);
  if (error != cudaSuccess) return error;
  error = MakeTensorMap(reinterpret_cast<const __nv_bfloat16*>(a.pages.base),
                        {shape.head_dim, call.page_tokens, shape.num_kv_heads, 2, INT32_MAX},
                        {kHeadBytes, a.pages.head_bytes, a.pages.value_offset, a.pages.page_bytes},
                        {call.box_tokens, 1, 1, 1}, &pages);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(multiprocessors, a.num_tiles * shape.num_kv_heads);
  return LaunchEarly<SharedMemory::kMost>(PrefillAttentionKernel<kAtoms>, blocks, kThreads, Sizes<kAtoms>::kShared,
                                          stream, queries, pages, call);
}

}  // namespace

bool HasPrefillAttention(const HeadShape& shape, int compute_major) {
  return compute_major == 9 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         shape.num_heads / shape.num_kv_heads <= kGroupPairs;
}

int PrefillTileRows(const HeadShape& shape) {
  return kConsumers * (kGroupPairs / (shape.num_heads / shape.num_kv_heads));
}

cudaError_t LaunchPrefillAttention(const PrefillAttentionArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.shape.head_dim == 64 ? Launch<1>(a, multiprocessors, stream) : Launch<2>(a, multiprocessors, stream);
}

}  // namespace tandem
