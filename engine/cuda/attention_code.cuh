#pragma once

#include <cstdint>

#include "engine/cuda/device_code.cuh"

// What the kernels share in which a warp attends with 8 columns, the query heads of one KV head, to tiles of 16 tokens.
// Scores are K q^T and outputs V^T p^T, so that the tokens are the rows of a tensor core instruction and the columns
// its columns.

namespace tandem {

inline constexpr int kTile = 16;  // Tokens.
inline constexpr int kColumns = 8;
inline constexpr float kNever = -1e30f;  // A score, of what is not seen.
template <int kHeadDim>
inline constexpr int kOutputFloats = kColumns*(kHeadDim + 2);  // Of a warp, below.

// exp2(score * this) is what exp(score / sqrt(head_dim)) is.
template <int kHeadDim>
__device__ __forceinline__ float ScoreScale() {
  return rsqrtf(static_cast<float>(kHeadDim)) * 1.44269504f;
}

// A warp's columns, and what they have seen so far. Work: of keys, values and queries, as they are multiplied.
template <int kHeadDim, typename Work>
class WarpAttention {
 public:
  // `queries`: [kColumns][kHeadDim], in shared memory.
  __device__ __forceinline__ explicit WarpAttention(const Work (&queries)[kColumns][kHeadDim]) {
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      q_[k][0] = *reinterpret_cast<const uint32_t*>(&queries[group()][k * 16 + quad() * 2]);
      q_[k][1] = *reinterpret_cast<const uint32_t*>(&queries[group()][k * 16 + 8 + quad() * 2]);
    }
  }

  // Takes a tile from shared memory, where `place`(token, chunk of 16 bytes) says where its chunks lie. `sees`(token,
  // i): whether column 2 quad + i sees this token of the tile.
  template <typename Place, typename Sees>
  __device__ __forceinline__ void Take(uint32_t keys, uint32_t values, Place place, Sees sees) {
    const int lane = threadIdx.x % 32;
    float s[4] = {};
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      uint32_t m[4];
      // Matrices: tokens 0-7 and 8-15 of chunk 2k, then of chunk 2k + 1.
      LoadMatrices(m, keys + place(lane % 16, 2 * k + lane / 16));
      MultiplyAdd<Work>(s, m[0], m[1], m[2], m[3], q_[k][0], q_[k][1]);
    }
    // s: tokens group and group + 8, columns 2 quad and 2 quad + 1.
    const float scale = ScoreScale<kHeadDim>();
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = sees(group() + 8 * (i / 2), i % 2) ? s[i] * scale : kNever;
    Weigh(s);
    // From rows of tokens to columns of tokens.
    const uint32_t p0 = TransposeMatrix(PackPair<Work>(s[0], s[1])), p1 = TransposeMatrix(PackPair<Work>(s[2], s[3]));
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t m[4];
      // Matrices: tokens 0-7 of chunks 2d and 2d + 1, then tokens 8-15; transposed.
      LoadMatricesTransposed(m, values + place(lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
      MultiplyAdd<Work>(o_[d], m[0], m[1], m[2], m[3], p0, p1);
    }
  }

  // Writes [kColumns][kHeadDim + 2]: a column's output, not divided by its sum, its largest score and its sum.
  __device__ __forceinline__ void Write(float* to) {
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(quad() * 2 + i % 2) * (kHeadDim + 2) + d * 16 + group() + 8 * (i / 2)] = o_[d][i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum_[i] += __shfl_xor_sync(0xffffffffu, sum_[i], step);
      if (group() != 0) continue;
      to[(quad() * 2 + i) * (kHeadDim + 2) + kHeadDim] = top_[i];
      to[(quad() * 2 + i) * (kHeadDim + 2) + kHeadDim + 1] = sum_[i];
    }
  }

 private:
  __device__ __forceinline__ static int group() { return threadIdx.x % 32 / 4; }
  __device__ __forceinline__ static int quad() { return threadIdx.x % 4; }

  // Scores become weights, relative to the largest score so far, and so does what was summed up.
  __device__ __forceinline__ void Weigh(float (&s)[4]) {
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float tile_top = fmaxf(s[i], s[i + 2]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) tile_top = fmaxf(tile_top, __shfl_xor_sync(0xffffffffu, tile_top, step));
      const float new_top = fmaxf(top_[i], tile_top);
      factor[i] = Exp2(top_[i] - new_top);
      top_[i] = new_top;
      // A column that has seen no token yet must not count these.
      s[i] = s[i] <= kNever ? 0 : Exp2(s[i] - new_top);
      s[i + 2] = s[i + 2] <= kNever ? 0 : Exp2(s[i + 2] - new_top);
      sum_[i] = sum_[i] * factor[i] + s[i] + s[i + 2];
    }
    if (!__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[d][i] *= factor[i % 2];
    }
  }

  uint32_t q_[kHeadDim / 16][2];
  float top_[2] = {kNever, kNever}, sum_[2] = {0, 0};
  float o_[kHeadDim / 16][4] = {};
};

// A warp puts `count` outputs of a column together: `read`(i, at) is element `at` of the i'th, as Write left them;
// `write`(d, value, top, sum) gets the elements.
template <int kHeadDim, typename Read, typename Write>
__device__ __forceinline__ void CombineOutputs(int count, Read read, Write write) {
  const int lane = threadIdx.x % 32;
  float top = kNever, sum = 0;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, read(i, kHeadDim));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  for (int i = lane; i < count; i += 32) sum += read(i, kHeadDim + 1) * Exp2(read(i, kHeadDim) - top);
  sum = SumOfWarp(sum);
  float values[kHeadDim / 32] = {};
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float weight = Exp2(read(i, kHeadDim) - top);
#pragma unroll
    for (int d = 0; d < kHeadDim / 32; ++d) values[d] += weight * read(i, d * 32 + lane);
  }
#pragma unroll
  for (int d = 0; d < kHeadDim / 32; ++d) write(d * 32 + lane, values[d], top, sum);
}

// For CombineOutputs: to an output of several parts, and to that of the layer.
template <int kHeadDim>
struct PartWriter {
  float* to;
  __device__ __forceinline__ void operator()(int d, float value, float top, float sum) const {
    to[d] = value;
    if (d != 0) return;
    to[kHeadDim] = top;
    to[kHeadDim + 1] = sum;
  }
};
struct OutputWriter {
  __nv_bfloat16* to;
  __device__ __forceinline__ void operator()(int d, float value, float, float sum) const {
    to[d] = __float2bfloat16_rn(value / sum);
  }
};

// Says that this block's part of something is written; true for the last of `count` blocks, which sees all parts. All
// `threads` threads of `barrier` call it; `is_last` is shared by them, and `arrived` is zero before and after.
__device__ __forceinline__ bool IsLastToArrive(uint32_t* arrived, uint32_t count, bool& is_last, int barrier,
                                               int threads) {
  __threadfence();
  SyncNamed(barrier, threads);
  if (threadIdx.x == 0) {
    is_last = atomicAdd(arrived, 1) == count - 1;
    if (is_last) *arrived = 0;
  }
  SyncNamed(barrier, threads);
  if (is_last) __threadfence();
  return is_last;
}

}  // namespace tandem
