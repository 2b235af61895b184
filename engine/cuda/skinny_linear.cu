#include <algorithm>

#include "engine/cuda/few_bit_code.cuh"
#include "engine/cuda/launch.h"
#include "engine/cuda/skinny_linear.h"

// How it works. A block takes tiles of 16 features, one after the other; each of its warps takes the same part of the
// input features of all of them. A warp multiplies on tensor cores, weights on the left and 8 tokens on the right, up
// to four times with the same weights, straight from what it loaded: the order in which products are summed is free, so
// each thread's 16 bytes of a weight row stand for the places that the instruction wants from it, and the same is done
// with the tokens. The warps' sums meet in shared memory. Weights of 4 or 8 bits become bf16 in registers.
//
// What counts is that the weights never stop coming: loads are ordered a batch ahead, the first ones before the
// kernel's input is there, and a block takes no more than half of a multiprocessor, so that the next kernel's first
// loads go out while this one ends.

namespace tandem {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kTileRows = 16;
constexpr int kMaxStaged = 96 << 10;  // Bytes of the input that a block keeps in shared memory.

// Bytes behind a staged row, so that what is read of several at once lies in unlike banks.
constexpr int RowPad(WeightKind kind) { return IsFewBits(kind) ? 32 : 64; }

template <int kMatrices, int kDepth>
struct Batch {
  uint4 low[kMatrices][kDepth], high[kMatrices][kDepth];  // Feature rows lane / 4 and lane / 4 + 8 of the tile.
  float scale[kMatrices][kDepth];                         // Of FP8 weights.
  uint32_t low_scale[kMatrices][kDepth], high_scale[kMatrices][kDepth];  // Of 4 bits: of 32 features of each thread.
};

// Four codes of E4M3 as bf16, the first and the third, the second and the fourth: with their bits in place they are too
// small by 2^120, subnormal ones too.
__device__ __forceinline__ void WidenCodes(uint32_t codes, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kSigns = 0x80008000, kMagnitudes = 0x07f007f0, kFactor = 0x7b807b80;
  const auto scale = [](uint32_t pair) {
    uint32_t out;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(pair), "r"(kFactor));
    return out;
  };
  even = scale((codes << 8 & kSigns) | (codes << 4 & kMagnitudes));
  odd = scale((codes & kSigns) | (codes >> 4 & kMagnitudes));
}

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
template <int kGroups, bool kGated, WeightKind kKind>
__global__ void __launch_bounds__(kThreads, 2) SkinnyLinearKernel(SkinnyLinearArguments a, int staged_row_bytes) {
  constexpr int kMatrices = kGated ? 2 : 1;
  constexpr bool kFloat8 = kKind == WeightKind::kFloat8, kFewBits = kIsFewBits<kKind>;
  constexpr bool k4Bits = kKind == WeightKind::kInt4 || kKind == WeightKind::kFloat4;
  constexpr int kStep = kStepFeatures<kKind>;
  constexpr int kStepBytes = 64;
  constexpr int kPerThread = kStep / 4;                             // Features of 16 bytes.
  constexpr int kDepth = (kGated ? 2 : 4) / (kGroups > 2 ? 2 : 1);  // What registers have room for.
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
  const int64_t weight_row_bytes = static_cast<int64_t>(steps) * kStepBytes;
  const uint8_t* origin = (kFloat8    ? a.float8.codes
                           : kFewBits ? a.few_bits.codes
                                      : reinterpret_cast<const uint8_t*>(a.weight)) +
                          group * weight_row_bytes + quad * 16;
  // The two scales of NVFP4 or the one of INT4 that 32 features of a row have which are the thread's to load.
  const auto load_scales = [&](int row, int step) -> uint32_t {
    const __nv_bfloat16* of_row = a.few_bits.scales + static_cast<int64_t>(row) * a.few_bits.scale_columns;
    const int feature = step * kStep + quad * 32;
    if constexpr (kKind == WeightKind::kFloat4) {
      return __ldg(reinterpret_cast<const uint32_t*>(of_row + feature / 16));
    } else {
      return __ldg(reinterpret_cast<const uint16_t*>(of_row + (feature >> a.few_bits.group_bits)));
    }
  };
  const auto load = [&](WarpBatch& batch, int tile, int step) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        if (tile < tiles && step + d < end_step) {
          const int row = m * half + tile * kTileRows;
          const uint8_t* from = origin + row * weight_row_bytes + (step + d) * kStepBytes;
          batch.low[m][d] = LoadStreamed(from);
          batch.high[m][d] = LoadStreamed(from + 8 * weight_row_bytes);
          if constexpr (kFloat8) {
            batch.scale[m][d] =
                a.float8.scales[row / kFloat8Block * a.float8.scale_stride + (step + d) * kStep / kFloat8Block];
          }
          if constexpr (k4Bits) {
            batch.low_scale[m][d] = load_scales(row + group, step + d);
            batch.high_scale[m][d] = load_scales(row + group + 8, step + d);
          }
        } else {
          batch.low[m][d] = batch.high[m][d] = make_uint4(0, 0, 0, 0);
          if constexpr (kFloat8) batch.scale[m][d] = 0;
          if constexpr (k4Bits) batch.low_scale[m][d] = batch.high_scale[m][d] = 0;
        }
      }
    }
  };

  float c[kMatrices][kGroups][4] = {};
  const auto token_row = [&](int token) {
    return staged_row_bytes > 0 ? staged + token * staged_row_bytes
                                : reinterpret_cast<const uint8_t*>(a.in + static_cast<int64_t>(token) * a.in_features);
  };
  // 8 of the features that the thread's weights are of: `part` 0 or, with FP8, 1.
  const auto load_tokens = [&](int g, int step, int part) {
    const int token = g * 8 + group;
    if (token >= a.rows || step >= end_step) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(token_row(token) + step * (kStep * 2) + quad * (kPerThread * 2) + part * 16);
  };
  // A step of weights of few bits: products of 16 features, 4 neighbours of each thread.
  const auto multiply_few_bits = [&](const WarpBatch& batch, int d, int step) {
#pragma unroll
    for (int product = 0; product < kStep / 16; ++product) {
      uint2 tokens[kGroups];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int token = g * 8 + group;
        tokens[g] = make_uint2(0, 0);
        if (token < a.rows && step + d < end_step) {
          tokens[g] =
              *reinterpret_cast<const uint2*>(token_row(token) + ((step + d) * kStep + product * 16 + quad * 4) * 2);
        }
      }
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const auto word_of = [](const uint4& words, int i) {
          return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
        };
        uint32_t low[2], high[2];
        if constexpr (k4Bits) {
          // The scales of these features are with another thread of the quad.
          const int owner = (lane & ~3) + product / 2;
          const int which = kKind == WeightKind::kFloat4 ? product % 2 : 0;
          const uint32_t low_scale = Twice(__shfl_sync(0xffffffffu, batch.low_scale[m][d], owner), which);
          const uint32_t high_scale = Twice(__shfl_sync(0xffffffffu, batch.high_scale[m][d], owner), which);
          const uint32_t low_word = word_of(batch.low[m][d], product / 2);
          const uint32_t high_word = word_of(batch.high[m][d], product / 2);
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            low[pair] = WidenNibbles<kKind>(low_word, product % 2 * 2 + pair, low_scale);
            high[pair] = WidenNibbles<kKind>(high_word, product % 2 * 2 + pair, high_scale);
          }
        } else {
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            low[pair] = WidenBytes(word_of(batch.low[m][d], product), pair);
            high[pair] = WidenBytes(word_of(batch.high[m][d], product), pair);
          }
        }
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          MultiplyAdd(c[m][g], low[0], high[0], low[1], high[1], tokens[g].x, tokens[g].y);
        }
      }
    }
  };
  // A step of FP8 weights. Tokens are paired as WidenCodes pairs weights.
  const auto multiply_codes = [&](const WarpBatch& batch, int d, int step) {
    float sums[kMatrices][kGroups][4] = {};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint4 tokens[kGroups];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) tokens[g] = load_tokens(g, step + d, part);
#pragma unroll
      for (int word = 0; word < 2; ++word) {
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) {
          const uint4 low = batch.low[m][d], high = batch.high[m][d];
          uint32_t low_even, low_odd, high_even, high_odd;
          WidenCodes(part == 0 ? (word == 0 ? low.x : low.y) : (word == 0 ? low.z : low.w), low_even, low_odd);
          WidenCodes(part == 0 ? (word == 0 ? high.x : high.y) : (word == 0 ? high.z : high.w), high_even, high_odd);
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            const uint32_t first = word == 0 ? tokens[g].x : tokens[g].z,
                           second = word == 0 ? tokens[g].y : tokens[g].w;
            MultiplyAdd(sums[m][g], low_even, high_even, low_odd, high_odd, __byte_perm(first, second, 0x5410),
                        __byte_perm(first, second, 0x7632));
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) c[m][g][i] += batch.scale[m][d] * sums[m][g][i];
      }
    }
  };
  const auto multiply_pairs = [&](const WarpBatch& batch, int step) {
    uint4 tokens[kDepth][kGroups];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) tokens[d][g] = load_tokens(g, step + d, 0);
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

  const auto multiply = [&](const WarpBatch& batch, int step) {
    if constexpr (kFloat8) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) multiply_codes(batch, d, step);
    } else if constexpr (kFewBits) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) multiply_few_bits(batch, d, step);
    } else {
      multiply_pairs(batch, step);
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
        if constexpr (kFewBits) sum *= a.few_bits.factors[m * half + tile * kTileRows + row];
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

WeightKind KindOf(const SkinnyLinearArguments& a) {
  return a.float8.codes != nullptr ? WeightKind::kFloat8 : a.few_bits.kind;
}

// Of 8 tokens, as there is code for.
int GroupsOf(const SkinnyLinearArguments& a) { return a.rows <= 8 ? 1 : a.rows <= 16 ? 2 : 4; }

struct SharedNeeds {
  size_t bytes = 0;          // Of a block.
  int staged_row_bytes = 0;  // 0: the input is not kept there.
};
SharedNeeds SharedNeedsOf(const SkinnyLinearArguments& a) {
  const int groups = GroupsOf(a), row_bytes = a.in_features * 2 + RowPad(KindOf(a));
  SharedNeeds needs;
  needs.bytes = size_t{2} * kWarps * (a.is_gated ? 2 : 1) * kTileRows * (8 * groups + 1) * sizeof(float);
  if (a.norm == nullptr && a.rows * row_bytes > kMaxStaged) return needs;
  needs.bytes += static_cast<size_t>(a.rows) * row_bytes;
  needs.staged_row_bytes = row_bytes;
  return needs;
}

template <int kGroups, bool kGated, WeightKind kKind>
cudaError_t Launch(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  const SharedNeeds needs = SharedNeedsOf(a);
  const int tiles = a.out_features / (kGated ? 2 : 1) / kTileRows;
  // A tile of few bits is so short that a block often waits for its sums: two take turns.
  constexpr size_t kHalfShared = 48 << 10;  // As SharedMemory::kCache divides.
  const int blocks = kIsFewBits<kKind> && needs.bytes <= kHalfShared ? 2 * multiprocessors : multiprocessors;
  return LaunchEarly(SkinnyLinearKernel<kGroups, kGated, kKind>, std::min(tiles, blocks), kThreads, needs.bytes, stream,
                     a, needs.staged_row_bytes);
}

template <int kGroups, bool kGated>
cudaError_t LaunchFor(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  switch (KindOf(a)) {
    case WeightKind::kInt8:
      return Launch<kGroups, kGated, WeightKind::kInt8>(a, multiprocessors, stream);
    case WeightKind::kInt4:
      return Launch<kGroups, kGated, WeightKind::kInt4>(a, multiprocessors, stream);
    case WeightKind::kFloat4:
      return Launch<kGroups, kGated, WeightKind::kFloat4>(a, multiprocessors, stream);
    default:
      break;
  }
  if constexpr (kGroups <= 2) {
    return KindOf(a) == WeightKind::kFloat8 ? Launch<kGroups, kGated, WeightKind::kFloat8>(a, multiprocessors, stream)
                                            : Launch<kGroups, kGated, WeightKind::kBf16>(a, multiprocessors, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

template <bool kGated>
cudaError_t LaunchForRows(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  switch (GroupsOf(a)) {
    case 1:
      return LaunchFor<1, kGated>(a, multiprocessors, stream);
    case 2:
      return LaunchFor<2, kGated>(a, multiprocessors, stream);
    default:
      return LaunchFor<4, kGated>(a, multiprocessors, stream);
  }
}

}  // namespace

bool IsSkinny(const SkinnyLinearArguments& a) {
  const int tile = a.is_gated ? 2 * kTileRows : kTileRows;
  constexpr size_t kMostShared = 224 << 10;  // A block may have 227 KB, of which some is the kernel's own.
  const bool takes_rows =
      a.rows <= kMaxSkinnyRows || (IsFewBits(a.few_bits.kind) && a.norm == nullptr && a.rows <= kMaxFewBitRows);
  return a.rows >= 1 && takes_rows && HasFewRowsForm(a) && a.in_features % StepFeatures(KindOf(a)) == 0 &&
         a.out_features % tile == 0 && SharedNeedsOf(a).bytes <= kMostShared;
}

cudaError_t LaunchSkinnyLinear(const SkinnyLinearArguments& a, int multiprocessors, cudaStream_t stream) {
  return a.is_gated ? LaunchForRows<true>(a, multiprocessors, stream)
                    : LaunchForRows<false>(a, multiprocessors, stream);
}

}  // namespace tandem
