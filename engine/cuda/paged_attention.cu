#include "engine/cuda/paged_attention.h"

#include <algorithm>

#include "engine/cuda/attention_code.cuh"
#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"

// How it works. A block takes 8 columns, the query heads of one KV head (of one row, or of as many as fit), and a part
// of the sequence's tokens; its warps take tiles of 16 tokens of it in turn, each for itself: keys and values come by
// asynchronous copies, a few tiles ahead; FP8 is widened to f16 in shared memory first. At the end the warps' outputs
// are put together, and those of the blocks that share a sequence by the last one of them.

namespace tandem {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr unsigned kFewBlocks = 200;
constexpr int kBytesOfLoneBlock = 116 << 10;  // Beside one of streamed_linear.

template <int kHeadDim, typename Kv>
struct Sizes {
  static constexpr bool kFloat8 = std::is_same_v<Kv, __nv_fp8_e4m3>;
  static constexpr int kStages = kFloat8 ? 4 : 3;          // Tiles on their way, per warp.
  static constexpr int kRowBytes = kHeadDim * sizeof(Kv);  // As stored.
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kTile * kRowBytes;
  static constexpr int kWideRowBytes = kHeadDim * 2;  // As multiplied.
  static constexpr int kWideTileBytes = kTile * kWideRowBytes;
  static constexpr int kStagedBytes = kStages * 2 * kTileBytes;  // Keys and values.
  static constexpr int kWarpBytes = kStagedBytes + (kFloat8 ? 2 * kWideTileBytes : 0);
  static constexpr int kShared = kWarps * kWarpBytes;
  // Outputs of the warps, in the same memory at the end.
  static_assert(kWarps * kOutputFloats<kHeadDim> * 4 <= kShared);
};

// Where 16 bytes of a tile's row lie, such that 8 rows' same bytes are in unlike banks.
template <int kRowBytes>
__device__ __forceinline__ int Place(int row, int chunk) {
  constexpr int kChunks = kRowBytes / 16;
  const int turned = kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & (kChunks - 1));
  return row * kRowBytes + turned * 16;
}

// A warp's work: a tile of keys or values of FP8 as f16.
template <int kHeadDim>
__device__ __forceinline__ void WidenTile(uint32_t from, uint32_t to) {
  constexpr int kChunks = kHeadDim / 16;
#pragma unroll
  for (int i = 0; i < kTile * kChunks / 32; ++i) {
    const int load = i * 32 + threadIdx.x % 32, row = load / kChunks, chunk = load % kChunks;
    const uint4 codes = LoadShared(from + Place<kHeadDim>(row, chunk));
    StoreShared(to + Place<kHeadDim * 2>(row, 2 * chunk),
                make_uint4(WidenToHalves(codes.x & 0xffff), WidenToHalves(codes.x >> 16),
                           WidenToHalves(codes.y & 0xffff), WidenToHalves(codes.y >> 16)));
    StoreShared(to + Place<kHeadDim * 2>(row, 2 * chunk + 1),
                make_uint4(WidenToHalves(codes.z & 0xffff), WidenToHalves(codes.z >> 16),
                           WidenToHalves(codes.w & 0xffff), WidenToHalves(codes.w >> 16)));
  }
}

// Kv: the pages' type. kWide: in a grid that wants as many blocks on a multiprocessor as its memory allows.
template <int kHeadDim, typename Kv, bool kWide>
__global__ void __launch_bounds__(kThreads) PagedAttentionKernel(PagedAttentionArguments a) {
  using S = Sizes<kHeadDim, Kv>;
  using Work = std::conditional_t<S::kFloat8, __half, __nv_bfloat16>;
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) Work queries[kColumns][kHeadDim];
  __shared__ bool is_last;
  LetNextKernelBegin();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane % 4;
  const AttentionPart part = a.step.parts[blockIdx.z];
  const SequenceView& sequence = part.sequence;
  const int kv_head = blockIdx.y, column_tile = blockIdx.x;
  const int group = a.shape.num_heads / a.shape.num_kv_heads;
  const int num_columns = sequence.num_rows * group, first_column = column_tile * kColumns;
  if (sequence.context_tokens == 0 || first_column >= num_columns) {
    WaitForEarlierKernels();  // Or the grid might end before the one that the next kernel must wait for.
    return;
  }
  const int columns = min(kColumns, num_columns - first_column);
  const int first_row = first_column / group, last_row = (first_column + columns - 1) / group;
  // Tokens that the last row of these columns sees.
  const int seen = sequence.context_tokens - sequence.num_rows + last_row + 1;
  const int tiles = (seen + kTile - 1) / kTile;
  const int first_tile = static_cast<int>(static_cast<int64_t>(tiles) * part.split / part.splits);
  const int end_tile = static_cast<int>(static_cast<int64_t>(tiles) * (part.split + 1) / part.splits);

  const uint32_t stages = SharedAddress(shared) + warp * S::kWarpBytes;
  // Steps of few sequences take 4 to 6 % less with it. Blocks that share a sequence's head run at the same time; where
  // several sequences share a prefix it may be read anew for each.
  const uint64_t policy = ReadOncePolicy();
  const uint8_t* head_base = a.pages.base + kv_head * a.pages.head_bytes;
  const auto start_copy = [&](int tile, int stage) {
    if (tile < end_tile) {
      // Lane l finds the place of token l; all lanes then copy.
      const int own_token = min(tile * kTile + lane % kTile, seen - 1);
      const int page = a.step.pages[sequence.first_page + own_token / a.pages.page_tokens];
      const int64_t own_place = page * a.pages.page_bytes + own_token % a.pages.page_tokens * S::kRowBytes;
      const uint32_t to = stages + stage * 2 * S::kTileBytes;
#pragma unroll
      for (int i = 0; i < kTile * S::kChunks / 32; ++i) {
        const int row = (i * 32 + lane) / S::kChunks, chunk = lane % S::kChunks;
        const uint8_t* from = head_base + __shfl_sync(0xffffffffu, own_place, row) + chunk * 16;
        const bool valid = tile * kTile + row < seen;
        CopyAsync(to + Place<S::kRowBytes>(row, chunk), from, valid, policy);
        CopyAsync(to + S::kTileBytes + Place<S::kRowBytes>(row, chunk), from + a.pages.value_offset, valid, policy);
      }
    }
    CommitCopies();
  };
  // Tiles with tokens of this step are copied when those are in their slots.
  const int own_tile = a.appends ? tiles - 1 : 0;
  int next_copy = 0;  // Of the warp's tiles: first_tile + warp + kWarps * next_copy.
  const auto tile_at = [&](int index) { return first_tile + warp + kWarps * index; };
  while (next_copy < S::kStages - 1 && tile_at(next_copy) < min(end_tile, own_tile)) {
    start_copy(tile_at(next_copy), next_copy % S::kStages);
    ++next_copy;
  }

  WaitForEarlierKernels();
  const int qkv_columns = (a.shape.num_heads + 2 * a.shape.num_kv_heads) * kHeadDim;
  // Whoever attends to the new token writes it; where more than 8 heads share it, several blocks write the same.
  const int head_tasks = a.appends && part.split == part.splits - 1 ? kColumns + 2 : kColumns;
  for (int task = warp; task < head_tasks; task += kWarps) {
    if (task < kColumns) {
      const int row = sequence.first_row + (first_column + task) / group;
      const int head = kv_head * group + (first_column + task) % group;
      const __nv_bfloat16* in = a.qkv + static_cast<int64_t>(row) * qkv_columns + head * kHeadDim;
      if (task >= columns) {
        for (int i = lane; i < kHeadDim; i += 32) Put(queries[task][i], 0);
      } else if (a.appends) {
        RotateHead<kHeadDim>(in, a.rotation.q_norm, a.rotation.epsilon,
                             a.rotation.turns + static_cast<int64_t>(row) * (kHeadDim / 2), a.rotation.adjacent_pairs,
                             queries[task]);
      } else {
        for (int i = lane; i < kHeadDim; i += 32) Put(queries[task][i], __bfloat162float(in[i]));
      }
      continue;
    }
    const int row = sequence.first_row, position = sequence.context_tokens - 1;
    const int page = a.step.pages[sequence.first_page + position / a.pages.page_tokens];
    auto* slot = reinterpret_cast<Kv*>(a.pages.base + page * a.pages.page_bytes + kv_head * a.pages.head_bytes +
                                       position % a.pages.page_tokens * S::kRowBytes);
    const __nv_bfloat16* key =
        a.qkv + static_cast<int64_t>(row) * qkv_columns + (a.shape.num_heads + kv_head) * kHeadDim;
    if (task == kColumns) {
      RotateHead<kHeadDim>(key, a.rotation.k_norm, a.rotation.epsilon,
                           a.rotation.turns + static_cast<int64_t>(row) * (kHeadDim / 2), a.rotation.adjacent_pairs,
                           slot);
    } else {
      const __nv_bfloat16* value = key + a.shape.num_kv_heads * kHeadDim;
      slot += a.pages.value_offset / static_cast<int64_t>(sizeof(Kv));
      for (int i = lane; i < kHeadDim; i += 32) Put(slot[i], __bfloat162float(value[i]));
    }
  }
  __syncthreads();
  while (next_copy < S::kStages - 1) {
    start_copy(tile_at(next_copy), next_copy % S::kStages);
    ++next_copy;
  }

  WarpAttention<kHeadDim, Work> attention(queries);
  // This thread's two columns, and how many tokens they see.
  int limit[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = min(first_column + quad * 2 + i, num_columns - 1) / group;
    limit[i] = sequence.context_tokens - sequence.num_rows + row + 1;
  }
  const int least = sequence.context_tokens - sequence.num_rows + first_row + 1;
  for (int index = 0; tile_at(index) < end_tile; ++index) {
    start_copy(tile_at(next_copy), next_copy % S::kStages);
    ++next_copy;
    WaitForCopies<S::kStages - 1>();
    __syncwarp();
    uint32_t keys = stages + index % S::kStages * 2 * S::kTileBytes, values = keys + S::kTileBytes;
    if constexpr (S::kFloat8) {
      const uint32_t wide = stages + S::kStagedBytes;
      WidenTile<kHeadDim>(keys, wide);
      WidenTile<kHeadDim>(values, wide + S::kWideTileBytes);
      keys = wide, values = wide + S::kWideTileBytes;
      __syncwarp();
    }
    const int first_token = tile_at(index) * kTile;

    const bool all_see = first_token + kTile <= least;
    attention.Take(keys, values, Place<S::kWideRowBytes>,
                   [&](int token, int i) { return all_see || first_token + token < limit[i]; });
    __syncwarp();
  }
  WaitForCopies<0>();

  // Together over the warps.
  __syncthreads();
  float* const outputs = reinterpret_cast<float*>(shared);
  attention.Write(outputs + warp * kOutputFloats<kHeadDim>);
  __syncthreads();
  const auto out_of = [&](int column) -> OutputWriter {
    const int row = sequence.first_row + (first_column + column) / group;
    const int head = kv_head * group + (first_column + column) % group;
    return {a.out + (static_cast<int64_t>(row) * a.shape.num_heads + head) * kHeadDim};
  };
  const int column_tiles = (group + kColumns - 1) / kColumns;
  const auto index_of = [&](int split) {
    return (int64_t{blockIdx.z - part.split + split} * a.shape.num_kv_heads + kv_head) * column_tiles + column_tile;
  };
  const auto partial_of = [&](int split, int column) {
    return a.partial + index_of(split) * kOutputFloats<kHeadDim> + column * (kHeadDim + 2);
  };
  for (int column = warp; column < columns; column += kWarps) {
    const auto read = [&](int w, int at) {
      return outputs[w * kOutputFloats<kHeadDim> + column * (kHeadDim + 2) + at];
    };
    if (part.splits == 1) {
      CombineOutputs<kHeadDim>(kWarps, read, out_of(column));
    } else {
      CombineOutputs<kHeadDim>(kWarps, read, PartWriter<kHeadDim>{partial_of(part.split, column)});
    }
  }
  if (part.splits == 1 || !IsLastToArrive(a.arrived + index_of(0), part.splits, is_last, 0, kThreads)) return;
  for (int column = warp; column < columns; column += kWarps) {
    CombineOutputs<kHeadDim>(
        part.splits, [&](int split, int at) { return __ldcg(partial_of(split, column) + at); }, out_of(column));
  }
}

template <int kHeadDim, typename Kv>
cudaError_t Launch(const PagedAttentionArguments& a, cudaStream_t stream) {
  const int group = a.shape.num_heads / a.shape.num_kv_heads;
  const int column_tiles = (a.max_rows * group + kColumns - 1) / kColumns;
  const dim3 grid(column_tiles, a.shape.num_kv_heads, a.step.num_parts);
  constexpr int kBytes = Sizes<kHeadDim, Kv>::kShared;
  if (grid.x * grid.y * grid.z <= kFewBlocks) {
    // The same division of memory as the kernels around it, and so much of it that no two blocks share a multiprocessor
    // while another one is idle.
    const int bytes = UsualDivision() == SharedMemory::kMost ? std::max(kBytes, kBytesOfLoneBlock) : kBytes;
    return LaunchEarly(PagedAttentionKernel<kHeadDim, Kv, false>, grid, kThreads, bytes, stream, a);
  }
  return LaunchEarly<SharedMemory::kMost>(PagedAttentionKernel<kHeadDim, Kv, true>, grid, kThreads, kBytes, stream, a);
}

template <int kHeadDim>
cudaError_t LaunchFor(const PagedAttentionArguments& a, cudaStream_t stream) {
  return a.pages.is_float8 ? Launch<kHeadDim, __nv_fp8_e4m3>(a, stream) : Launch<kHeadDim, __nv_bfloat16>(a, stream);
}

}  // namespace

int BlocksOfPart(const HeadShape& shape) {
  const int group = shape.num_heads / shape.num_kv_heads;
  return shape.num_kv_heads * ((group + kColumns - 1) / kColumns);
}

int64_t NumArrived(const HeadShape& shape, int num_parts) { return int64_t{num_parts} * BlocksOfPart(shape); }

int64_t PartialFloats(const HeadShape& shape, int num_parts) {
  return NumArrived(shape, num_parts) * kColumns * (shape.head_dim + 2);
}

cudaError_t LaunchPagedAttention(const PagedAttentionArguments& arguments, cudaStream_t stream) {
  switch (arguments.shape.head_dim) {
    case 32:
      return LaunchFor<32>(arguments, stream);
    case 64:
      return LaunchFor<64>(arguments, stream);
    default:
      return LaunchFor<128>(arguments, stream);
  }
}

}  // namespace tandem
