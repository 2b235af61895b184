#include "engine/cuda/streamed_attention.h"

#include <cuda.h>

#include <algorithm>

#include "engine/cuda/attention_code.cuh"
#include "engine/cuda/device_code.cuh"
#include "engine/cuda/hopper_code.cuh"
#include "engine/cuda/launch.h"

// How it works. A slice is a KV head and up to 8 query heads that share it; an item is a sequence and one, two or four
// neighbouring slices, which lie side by side in a page and are read one after the other. The tokens of all items, 16
// at a time, make one line that is cut into as many even stretches as there are blocks, one for each multiprocessor.
// One warp orders copies of keys and values from end to end, a tile of a slice for each of the eight warps ahead. These
// multiply, those of a slice in turn, and put their outputs together where an item ends; where a cut divides an item,
// the last of its blocks puts the parts together.
//
// The new token is not read from its page, where it is being written: its row is put into the tile by hand.

namespace tandem {
namespace {

constexpr int kWarps = 8;  // That multiply.
constexpr int kConsumers = kWarps * 32;
constexpr int kThreads = kConsumers + 32;
constexpr int kStages = kWarps;  // So few that a block of streamed_linear is there beside it.
constexpr int kMostSlices = 4;   // Of an item.
constexpr int kMostSequences = 512;
constexpr int kConsumersBarrier = 1;

template <int kAtoms>
struct Sizes {
  static constexpr int kHeadDim = kAtoms * kAtom;
  static constexpr int kAtomTileBytes = kTile * kAtomBytes;
  static constexpr int kValues = kAtoms * kAtomTileBytes;  // Behind a tile's keys.
  static constexpr int kStageBytes = 2 * kValues;
  static constexpr int kShared = kStages * kStageBytes + kWarps * kOutputFloats<kHeadDim> * 4 + kRingAlignment;
};

// Where 16 bytes of a row lie in a tile of keys or values.
template <int kAtoms>
__device__ __forceinline__ int Place(int row, int chunk) {
  return chunk / 8 * Sizes<kAtoms>::kAtomTileBytes + row * kAtomBytes + (chunk % 8 ^ row % 8) * 16;
}

// How heads are cut.
struct Cut {
  int column_tiles = 1;   // Slices of a KV head.
  int slices = 1;         // Of an item, up to kMostSlices; divides kWarps.
  int heads_of_page = 0;  // So many of them lie between the heads of one page and those of the next.
};

// The line of all tiles.
struct Line {
  const int* ends;           // [num_sequences]: tiles of this sequence and those before it.
  int num_sequences, items;  // `items`: of a sequence.
};

// A stretch of an item.
struct Stretch {
  int sequence = 0, item = 0;
  int first = 0, end = 0;  // Tiles of the item.
  int tiles = 0;           // Of the whole item.
  int64_t item_begin = 0;  // In the line.
};

// The stretch from `at` on, up to `end` or the end of its item.
__device__ __forceinline__ Stretch StretchAt(const Line& line, int64_t at, int64_t end) {
  int low = 0, high = line.num_sequences - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (at < int64_t{line.ends[middle]} * line.items) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int before = low == 0 ? 0 : line.ends[low - 1];
  Stretch stretch;
  stretch.sequence = low;
  stretch.tiles = line.ends[low] - before;
  const int64_t sequence_begin = int64_t{before} * line.items;
  stretch.item = static_cast<int>((at - sequence_begin) / stretch.tiles);
  stretch.item_begin = sequence_begin + int64_t{stretch.item} * stretch.tiles;
  stretch.first = static_cast<int>(at - stretch.item_begin);
  stretch.end = static_cast<int>(min(static_cast<int64_t>(stretch.tiles), end - stretch.item_begin));
  return stretch;
}

// ends[i] of a line: sums over the sequences, by all threads of the block.
__device__ __forceinline__ void SumTiles(const StepView& step, int* ends) {
  const auto tiles_of = [&](int i) {
    const SequenceView sequence = step.sequences[i];
    return sequence.num_rows == 1 ? (sequence.context_tokens + kTile - 1) / kTile : 0;
  };
  for (int i = threadIdx.x; i < step.num_sequences; i += kThreads) ends[i] = tiles_of(i);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  int before = 0;
  for (int first = 0; first < step.num_sequences; first += 32) {
    int sum = first + lane < step.num_sequences ? ends[first + lane] : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += other;
    }
    sum += before;
    if (first + lane < step.num_sequences) ends[first + lane] = sum;
    before = __shfl_sync(0xffffffffu, sum, 31);
  }
}

template <int kAtoms>
__device__ __forceinline__ void Produce(const PagedAttentionArguments& a, const CUtensorMap& map, const Line& line,
                                        int64_t begin, int64_t end, const Cut& cut, uint8_t* ring, uint64_t* full,
                                        uint64_t* empty) {
  using Size = Sizes<kAtoms>;
  const int lane = threadIdx.x % 32;
  if (!a.appends) WaitForEarlierKernels();  // One of them wrote the new tokens.
  RingPlace<kStages> place;
  for (int64_t at = begin; at < end;) {
    const Stretch stretch = StretchAt(line, at, end);
    const int first_page = a.step.sequences[stretch.sequence].first_page;
    for (int first = stretch.first; first < stretch.end; first += 32) {
      int page = 0;
      if (first + lane < stretch.end) page = a.step.pages[first_page + (first + lane) * kTile / a.pages.page_tokens];
      for (int i = first; i < min(stretch.end, first + 32); ++i) {
        const int page_begin = __shfl_sync(0xffffffffu, page, i - first) * cut.heads_of_page;
        for (int slice = stretch.item * cut.slices; slice < (stretch.item + 1) * cut.slices; ++slice) {
          place.WaitEmpty(empty);
          if (lane == 0) {
            Barrier::arrive_and_expect_tx(&full[place.stage], Size::kStageBytes);
            cute::SM90_TMA_LOAD_5D::copy(&map, &full[place.stage],
                                         static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
                                         ring + place.stage * Size::kStageBytes, 0, i * kTile % a.pages.page_tokens, 0,
                                         0, page_begin + slice / cut.column_tiles);
          }
          place.Next();
        }
      }
    }
    at += stretch.end - stretch.first;
  }
}

// What a consumer warp does with the new token of a sequence, whose key and value it is: it goes to its slot, and to
// `kept` [2][kHeadDim] in shared memory.
template <int kHeadDim>
__device__ __forceinline__ void TakeNewToken(const PagedAttentionArguments& a, const SequenceView& sequence,
                                             int kv_head, const __nv_bfloat16* key, const float2* turns,
                                             __nv_bfloat16 (*kept)[kHeadDim]) {
  RotateHead<kHeadDim>(key, a.rotation.k_norm, a.rotation.epsilon, turns, a.rotation.adjacent_pairs, kept[0]);
  const int position = sequence.context_tokens - 1;
  const int page = a.step.pages[sequence.first_page + position / a.pages.page_tokens];
  auto* slot =
      reinterpret_cast<__nv_bfloat16*>(a.pages.base + page * a.pages.page_bytes + kv_head * a.pages.head_bytes +
                                       position % a.pages.page_tokens * (kHeadDim * 2));
  __syncwarp();
  for (int i = threadIdx.x % 32; i < kHeadDim; i += 32) {
    kept[1][i] = key[a.shape.num_kv_heads * kHeadDim + i];
    slot[i] = kept[0][i];
    slot[a.pages.value_offset / 2 + i] = kept[1][i];
  }
  __syncwarp();
}

// Of the last tile of a sequence, of which `seen` tokens count: the new one comes from `kept`, where there is that.
// Behind it lies anything, which a weight of zero does not undo if it is no number.
template <int kAtoms>
__device__ __forceinline__ void MendLastTile(uint32_t keys, uint32_t values, int seen,
                                             const __nv_bfloat16 (*kept)[Sizes<kAtoms>::kHeadDim]) {
  constexpr int kChunks = Sizes<kAtoms>::kHeadDim / 8;
  for (int i = threadIdx.x % 32; i < (kTile - seen + 1) * kChunks; i += 32) {
    const int token = seen - 1 + i / kChunks, chunk = i % kChunks;
    const bool is_new = token == seen - 1;
    if (is_new && kept == nullptr) continue;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    StoreShared(keys + Place<kAtoms>(token, chunk), is_new ? reinterpret_cast<const uint4*>(kept[0])[chunk] : zero);
    StoreShared(values + Place<kAtoms>(token, chunk), is_new ? reinterpret_cast<const uint4*>(kept[1])[chunk] : zero);
  }
  cute::tma_store_fence();  // The copy engine writes there next.
  __syncwarp();
}

// The shared memory of a block.
template <int kAtoms>
struct Memory {
  uint8_t* ring;
  float* outputs;  // Of the warps, as WarpAttention writes them.
  uint64_t *full, *empty;
  __nv_bfloat16 (*queries)[kColumns][Sizes<kAtoms>::kHeadDim];  // Of each slice of an item, and of the item before.
  bool* is_last;
};

// The eight warps that multiply.
template <int kAtoms>
__device__ __forceinline__ void Consume(const PagedAttentionArguments& a, const Line& line, int64_t begin, int64_t end,
                                        int64_t length, const Cut& cut, const Memory<kAtoms>& memory) {
  using Size = Sizes<kAtoms>;
  constexpr int kHeadDim = Size::kHeadDim;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = a.shape.num_heads / a.shape.num_kv_heads;
  const int qkv_columns = (a.shape.num_heads + 2 * a.shape.num_kv_heads) * kHeadDim;
  const int own_slice = warp % cut.slices;
  const int sharers = kWarps / cut.slices, share = warp / cut.slices;  // Warps of a slice, and which of them this is.
  const auto output_of = [&](int w) { return memory.outputs + w * kOutputFloats<kHeadDim>; };
  int items = 0;
  int index = share;  // This warp's next tile, counted from `begin`.
  for (int64_t at = begin; at < end;) {
    const Stretch stretch = StretchAt(line, at, end);
    const int64_t next = at + (stretch.end - stretch.first);
    const SequenceView sequence = a.step.sequences[stretch.sequence];
    const int slice = stretch.item * cut.slices + own_slice;
    const int kv_head = slice / cut.column_tiles, first_column = slice % cut.column_tiles * kColumns;
    const int columns = min(kColumns, group - first_column);
    const __nv_bfloat16* const row = a.qkv + static_cast<int64_t>(sequence.first_row) * qkv_columns;
    const float2* const turns = a.rotation.turns + static_cast<int64_t>(sequence.first_row) * (kHeadDim / 2);

    // The other half may still be read, for the last item.
    auto& queries = memory.queries[items++ % 2 * kMostSlices + own_slice];
    for (int column = share; column < kColumns; column += sharers) {
      const __nv_bfloat16* in = row + (kv_head * group + first_column + column) * kHeadDim;
      if (column < columns && a.appends) {
        RotateHead<kHeadDim>(in, a.rotation.q_norm, a.rotation.epsilon, turns, a.rotation.adjacent_pairs,
                             queries[column]);
      } else {
        for (int i = lane; i < kHeadDim; i += 32) queries[column][i] = column < columns ? in[i] : __float2bfloat16(0);
      }
    }
    SyncNamed(kConsumersBarrier, kConsumers);
    WarpAttention<kHeadDim, __nv_bfloat16> attention(queries);
    __syncwarp();
    // The new token is for the warp that comes to it; it is kept where that warp's output will be.
    __nv_bfloat16(*kept)[kHeadDim] = nullptr;
    if (a.appends && stretch.end == stretch.tiles && (next - 1 - begin) % sharers == share) {
      kept = reinterpret_cast<__nv_bfloat16(*)[kHeadDim]>(output_of(warp));
      TakeNewToken<kHeadDim>(a, sequence, kv_head, row + (a.shape.num_heads + kv_head) * kHeadDim, turns, kept);
    }

    for (; index < next - begin; index += sharers) {
      const int turn = index * cut.slices + own_slice, stage = turn % kStages;
      Barrier::wait(&memory.full[stage], turn / kStages & 1);
      const uint32_t keys = SharedAddress(memory.ring) + stage * Size::kStageBytes, values = keys + Size::kValues;
      const bool is_last = stretch.first + index - (at - begin) == stretch.tiles - 1;
      const int seen = is_last ? (sequence.context_tokens - 1) % kTile + 1 : kTile;  // Of its tokens.
      if (is_last) MendLastTile<kAtoms>(keys, values, seen, kept);
      attention.Take(keys, values, Place<kAtoms>, [seen](int token, int) { return token < seen; });
      __syncwarp();
      if (lane == 0) Barrier::arrive(&memory.empty[stage]);
    }
    __syncwarp();
    attention.Write(output_of(warp));
    SyncNamed(kConsumersBarrier, kConsumers);

    const int64_t first_block = stretch.item_begin / length;
    const int blocks = static_cast<int>((stretch.item_begin + stretch.tiles - 1) / length - first_block) + 1;
    // Of a block's memory for parts, the first half is for an item that began before it.
    const auto part_of = [&](int block, int column) {
      const int64_t part = ((first_block + block) * 2 + (block == 0 ? 1 : 0)) * cut.slices + own_slice;
      return a.partial + part * kOutputFloats<kHeadDim> + column * (kHeadDim + 2);
    };
    const auto out_of = [&](int column) -> OutputWriter {
      const int head = kv_head * group + first_column + column;
      return {a.out + (static_cast<int64_t>(sequence.first_row) * a.shape.num_heads + head) * kHeadDim};
    };
    for (int column = share; column < columns; column += sharers) {
      const auto read = [&](int sharer, int i) {
        return output_of(own_slice + sharer * cut.slices)[column * (kHeadDim + 2) + i];
      };
      if (blocks == 1) {
        CombineOutputs<kHeadDim>(sharers, read, out_of(column));
      } else {
        CombineOutputs<kHeadDim>(sharers, read,
                                 PartWriter<kHeadDim>{part_of(static_cast<int>(blockIdx.x - first_block), column)});
      }
    }
    if (blocks == 1) {
      SyncNamed(kConsumersBarrier, kConsumers);  // Outputs are read.
    } else if (IsLastToArrive(a.arrived + first_block, blocks, *memory.is_last, kConsumersBarrier, kConsumers)) {
      for (int column = share; column < columns; column += sharers) {
        CombineOutputs<kHeadDim>(
            blocks, [&](int block, int i) { return __ldcg(part_of(block, column) + i); }, out_of(column));
      }
    }
    at = next;
  }
}

template <int kAtoms>
__global__ void __launch_bounds__(kThreads)
    StreamedAttentionKernel(PagedAttentionArguments a, const __grid_constant__ CUtensorMap map, Cut cut) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  __shared__ int ends[kMostSequences];
  __shared__ __align__(16) __nv_bfloat16 queries[2 * kMostSlices][kColumns][Sizes<kAtoms>::kHeadDim];
  __shared__ bool is_last;
  LetNextKernelBegin();
  uint8_t* const ring = AlignedRing(shared);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      Barrier::init(&full[stage], 1);
      Barrier::init(&empty[stage], 1);
    }
    cutlass::arch::fence_barrier_init();
  }
  SumTiles(a.step, ends);
  __syncthreads();
  const Line line = {ends, a.step.num_sequences, a.shape.num_kv_heads * cut.column_tiles / cut.slices};
  const int64_t all = int64_t{ends[a.step.num_sequences - 1]} * line.items;
  const int64_t length = (all + gridDim.x - 1) / gridDim.x;  // Of a block's part of the line.
  const int64_t begin = min(all, blockIdx.x * length), end = min(all, begin + length);
  if (threadIdx.x >= kConsumers) {
    Produce<kAtoms>(a, map, line, begin, end, cut, ring, full, empty);
    WaitForEarlierKernels();
  } else {
    WaitForEarlierKernels();
    auto* const outputs = reinterpret_cast<float*>(ring + kStages * Sizes<kAtoms>::kStageBytes);
    Consume<kAtoms>(a, line, begin, end, length, cut, {ring, outputs, full, empty, queries, &is_last});
  }
}

// Of all sequences.
int64_t Slices(const PagedAttentionArguments& a) { return int64_t{a.step.num_sequences} * BlocksOfPart(a.shape); }

// Whether an item is of four slices: memory likes to be read at length, but more is to be put together then where an
// item is cut, and of few items most are.
bool LongReads(const PagedAttentionArguments& a, int multiprocessors) {
  return Slices(a) >= 6 * int64_t{multiprocessors};
}

template <int kAtoms>
cudaError_t Launch(const PagedAttentionArguments& a, int multiprocessors, cudaStream_t stream) {
  constexpr int64_t kRowBytes = kAtoms * kAtomBytes;
  const int group = a.shape.num_heads / a.shape.num_kv_heads;
  CUtensorMap map;
  // A page's heads, of keys and of values, and of all layers, are as many bytes apart.
  const cudaError_t error = MakeTensorMap(
      reinterpret_cast<const __nv_bfloat16*>(a.pages.base), {kAtom, a.pages.page_tokens, kAtoms, 2, INT32_MAX},
      {kRowBytes, kAtomBytes, a.pages.value_offset, a.pages.head_bytes}, {kTile, kAtoms, 2, 1}, &map);
  if (error != cudaSuccess) return error;
  Cut cut;
  cut.column_tiles = (group + kColumns - 1) / kColumns;
  const int all_slices = a.shape.num_kv_heads * cut.column_tiles;
  cut.slices = LongReads(a, multiprocessors) ? kMostSlices : kMostSlices / 2;
  while (all_slices % cut.slices != 0) cut.slices /= 2;
  cut.heads_of_page = static_cast<int>(a.pages.page_bytes / a.pages.head_bytes);
  return LaunchEarly<SharedMemory::kMost>(StreamedAttentionKernel<kAtoms>, multiprocessors, kThreads,
                                          Sizes<kAtoms>::kShared, stream, a, map, cut);
}

}  // namespace

bool HasStreamedAttention(const PagedAttentionArguments& a, int compute_major) {
  const int dim = a.shape.head_dim;
  return compute_major == 9 && (dim == 64 || dim == 128) && !a.pages.is_float8 && a.max_rows == 1 &&
         a.pages.page_tokens % kTile == 0 && a.pages.page_bytes % a.pages.head_bytes == 0 &&
         a.step.num_sequences <= kMostSequences;
}

bool IsStreamedAttention(const PagedAttentionArguments& a, int compute_major, int multiprocessors) {
  return HasStreamedAttention(a, compute_major) && Slices(a) > multiprocessors;
}

cudaError_t LaunchStreamedAttention(const PagedAttentionArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.shape.head_dim == 64 ? Launch<1>(a, multiprocessors, stream) : Launch<2>(a, multiprocessors, stream);
}

int64_t StreamedPartialFloats(const HeadShape& shape, int multiprocessors) {
  return int64_t{multiprocessors} * 2 * kMostSlices * kColumns * (shape.head_dim + 2);
}
int64_t StreamedArrived(int multiprocessors) { return multiprocessors; }

}  // namespace tandem
