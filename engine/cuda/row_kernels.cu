#include "engine/cuda/row_kernels.h"

#include <type_traits>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"

namespace tandem {
namespace {

constexpr int kThreads = 256;
constexpr int kPerLoad = 8;  // Elements of 16 bytes.

__global__ void EmbedKernel(EmbedArguments a) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int row = blockIdx.x;
  int token = a.step.tokens[row];
  if (token < 0) token = a.samples[-1 - token];
  const uint4* from = reinterpret_cast<const uint4*>(a.table + static_cast<int64_t>(token) * a.columns);
  uint4* to = reinterpret_cast<uint4*>(a.out + static_cast<int64_t>(row) * a.columns);
  for (int i = threadIdx.x; i < a.columns / kPerLoad; i += blockDim.x) to[i] = from[i];
  const double position = a.step.positions[row];
  for (int i = threadIdx.x; i < a.half_dim; i += blockDim.x) {
    double sine, cosine;
    sincos(position * a.frequencies[i], &sine, &cosine);
    a.turns[static_cast<int64_t>(row) * a.half_dim + i] =
        make_float2(static_cast<float>(cosine), static_cast<float>(sine));
  }
}

__global__ void __launch_bounds__(kThreads) RmsNormKernel(const __nv_bfloat16* in, const __nv_bfloat16* weight,
                                                          float epsilon, int columns, __nv_bfloat16* out) {
  __shared__ float warp_sums[kThreads / 32];
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int64_t row = blockIdx.x;
  const uint4* from = reinterpret_cast<const uint4*>(in + row * columns);
  const uint4* factors = reinterpret_cast<const uint4*>(weight);
  uint4* to = reinterpret_cast<uint4*>(out + row * columns);
  constexpr int kHeld = 4;  // Loads a thread keeps; rows of up to 8192 are read once.
  uint4 held[kHeld];
  float squares = 0;
  const int loads = columns / kPerLoad;
  const auto add = [&](const uint4& value) {
    for (uint32_t pair : {value.x, value.y, value.z, value.w}) {
      const float2 v = UnpackPair(pair);
      squares += v.x * v.x + v.y * v.y;
    }
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i < loads) add(held[k] = from[i]);
  }
  for (int i = threadIdx.x + kHeld * kThreads; i < loads; i += kThreads) add(from[i]);
  squares = SumOfWarp(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = 0;
  for (float part : warp_sums) sum += part;
  const float scale = rsqrtf(sum / columns + epsilon);
  const auto scaled = [&](uint32_t pair, uint32_t factor) {
    const float2 v = UnpackPair(pair), f = UnpackPair(factor);
    return PackPair(v.x * scale * f.x, v.y * scale * f.y);
  };
  const auto write = [&](int i, const uint4& value) {
    const uint4 factor = factors[i];
    to[i] = make_uint4(scaled(value.x, factor.x), scaled(value.y, factor.y), scaled(value.z, factor.z),
                       scaled(value.w, factor.w));
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i < loads) write(i, held[k]);
  }
  for (int i = threadIdx.x + kHeld * kThreads; i < loads; i += kThreads) write(i, from[i]);
}

__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(const uint4* gate_up, int64_t loads_of_row, int64_t loads, uint4* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const auto product = [](uint32_t gate, uint32_t up) {
    const float2 g = UnpackPair(gate), u = UnpackPair(up);
    return PackPair(Silu(g.x) * u.x, Silu(g.y) * u.y);
  };
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < loads; i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / loads_of_row, column = i % loads_of_row;
    const uint4 gate = gate_up[row * 2 * loads_of_row + column];
    const uint4 up = gate_up[row * 2 * loads_of_row + loads_of_row + column];
    out[i] = make_uint4(product(gate.x, up.x), product(gate.y, up.y), product(gate.z, up.z), product(gate.w, up.w));
  }
}

__global__ void GatherRowsKernel(const __nv_bfloat16* in, const int32_t* rows, int columns, __nv_bfloat16* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const uint4* from = reinterpret_cast<const uint4*>(in + static_cast<int64_t>(rows[blockIdx.x]) * columns);
  uint4* to = reinterpret_cast<uint4*>(out + static_cast<int64_t>(blockIdx.x) * columns);
  for (int i = threadIdx.x; i < columns / kPerLoad; i += blockDim.x) to[i] = from[i];
}

// Eight pairs of a head that turn together, or sixteen values that do not: two times 16 bytes.
struct Pairs {
  float x[kPerLoad], y[kPerLoad];
};

// `pair`: the first one's number.
template <int kHeadDim>
__device__ __forceinline__ Pairs LoadPairs(const __nv_bfloat16* head, int pair, bool adjacent) {
  const auto* first = reinterpret_cast<const uint4*>(head + (adjacent ? 2 * pair : pair));
  const uint4 low = *first, high = first[adjacent ? 1 : kHeadDim / 2 / kPerLoad];
  const uint32_t words[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  Pairs pairs;
#pragma unroll
  for (int i = 0; i < kPerLoad; ++i) {
    const float2 value = UnpackPair(words[i]);
    if (adjacent) {
      pairs.x[i] = value.x, pairs.y[i] = value.y;
    } else {
      float* const half = i < kPerLoad / 2 ? pairs.x : pairs.y;
      half[2 * i % kPerLoad] = value.x, half[2 * i % kPerLoad + 1] = value.y;
    }
  }
  return pairs;
}

template <int kHeadDim, typename Out>
__device__ __forceinline__ void StorePairs(const Pairs& pairs, int pair, bool adjacent, Out* head) {
  alignas(16) Out low[kPerLoad], high[kPerLoad];
#pragma unroll
  for (int i = 0; i < kPerLoad; ++i) {
    Put(low[i], adjacent ? (i % 2 == 0 ? pairs.x[i / 2] : pairs.y[i / 2]) : pairs.x[i]);
    Put(high[i], adjacent ? (i % 2 == 0 ? pairs.x[kPerLoad / 2 + i / 2] : pairs.y[kPerLoad / 2 + i / 2]) : pairs.y[i]);
  }
  using Load = std::conditional_t<sizeof(Out) == 2, uint4, uint2>;
  auto* first = reinterpret_cast<Load*>(head + (adjacent ? 2 * pair : pair));
  first[0] = *reinterpret_cast<const Load*>(low);
  first[adjacent ? 1 : kHeadDim / 2 / kPerLoad] = *reinterpret_cast<const Load*>(high);
}

// A thread for eight pairs of a head of a row. Kv: the pages' type.
template <int kHeadDim, typename Kv>
__global__ void __launch_bounds__(kThreads)
    RopeAndAppendKernel(StepView step, HeadShape shape, HeadRotation rotation, LayerPages pages, __nv_bfloat16* qkv) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  constexpr int kOfHead = kHeadDim / 2 / kPerLoad;  // Threads.
  const int heads = shape.num_heads + 2 * shape.num_kv_heads;
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const bool exists = index < step.rows * heads * kOfHead;
  const int row = exists ? index / (heads * kOfHead) : 0, head = index / kOfHead % heads;
  const int pair = index % kOfHead * kPerLoad;
  const SequenceView sequence = step.sequences[step.sequence_of_row[row]];
  const bool works = exists && sequence.context_tokens > 0;
  const bool is_query = head < shape.num_heads, is_key = !is_query && head < shape.num_heads + shape.num_kv_heads;
  __nv_bfloat16* const in = qkv + (static_cast<int64_t>(row) * heads + head) * kHeadDim;
  const bool adjacent = rotation.adjacent_pairs;
  Pairs pairs = {};
  if (works) pairs = LoadPairs<kHeadDim>(in, pair, adjacent);
  const __nv_bfloat16* norm = is_query ? rotation.q_norm : is_key ? rotation.k_norm : nullptr;
  if (rotation.q_norm != nullptr || rotation.k_norm != nullptr) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) squares += pairs.x[i] * pairs.x[i] + pairs.y[i] * pairs.y[i];
#pragma unroll
    for (int lanes = 1; lanes < kOfHead; lanes *= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    if (works && norm != nullptr) {
      const float scale = rsqrtf(squares / kHeadDim + rotation.epsilon);
      const Pairs factors = LoadPairs<kHeadDim>(norm, pair, adjacent);
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) {
        pairs.x[i] *= scale * factors.x[i];
        pairs.y[i] *= scale * factors.y[i];
      }
    }
  }
  if (!works) return;
  if (is_query || is_key) {
    const auto* turns =
        reinterpret_cast<const float4*>(rotation.turns + static_cast<int64_t>(row) * (kHeadDim / 2) + pair);
#pragma unroll
    for (int i = 0; i < kPerLoad; i += 2) {
      const float4 two = turns[i / 2];
      const float x0 = pairs.x[i], x1 = pairs.x[i + 1];
      pairs.x[i] = x0 * two.x - pairs.y[i] * two.y;
      pairs.y[i] = x0 * two.y + pairs.y[i] * two.x;
      pairs.x[i + 1] = x1 * two.z - pairs.y[i + 1] * two.w;
      pairs.y[i + 1] = x1 * two.w + pairs.y[i + 1] * two.z;
    }
  }
  if (is_query) {
    StorePairs<kHeadDim>(pairs, pair, adjacent, in);
    return;
  }
  const int position = step.positions[row];
  const int page = step.pages[sequence.first_page + position / pages.page_tokens];
  uint8_t* slot = pages.base + page * pages.page_bytes + position % pages.page_tokens * (kHeadDim * sizeof(Kv));
  slot += (head - shape.num_heads) % shape.num_kv_heads * pages.head_bytes + (is_key ? 0 : pages.value_offset);
  StorePairs<kHeadDim>(pairs, pair, adjacent, reinterpret_cast<Kv*>(slot));
}

}  // namespace

cudaError_t LaunchEmbed(const EmbedArguments& arguments, cudaStream_t stream) {
  return LaunchEarly(EmbedKernel, arguments.step.rows, kThreads, 0, stream, arguments);
}

cudaError_t LaunchRmsNorm(const __nv_bfloat16* in, const __nv_bfloat16* weight, float epsilon, int rows, int columns,
                          __nv_bfloat16* out, cudaStream_t stream) {
  return LaunchEarly(RmsNormKernel, rows, kThreads, 0, stream, in, weight, epsilon, columns, out);
}

cudaError_t LaunchSiluMul(const __nv_bfloat16* gate_up, int rows, int columns, __nv_bfloat16* out,
                          cudaStream_t stream) {
  const int64_t loads = int64_t{rows} * columns / kPerLoad;
  const int blocks = static_cast<int>(loads < 132 * 16 * kThreads ? (loads + kThreads - 1) / kThreads : 132 * 16);
  return LaunchEarly(SiluMulKernel, blocks, kThreads, 0, stream, reinterpret_cast<const uint4*>(gate_up),
                     int64_t{columns / kPerLoad}, loads, reinterpret_cast<uint4*>(out));
}

cudaError_t LaunchGatherRows(const __nv_bfloat16* in, const int32_t* rows, int num_rows, int columns,
                             __nv_bfloat16* out, cudaStream_t stream) {
  return LaunchEarly(GatherRowsKernel, num_rows, kThreads, 0, stream, in, rows, columns, out);
}

cudaError_t LaunchRopeAndAppend(const StepView& step, const HeadShape& shape, const HeadRotation& rotation,
                                const LayerPages& pages, __nv_bfloat16* qkv, cudaStream_t stream) {
  const auto launch = [&](auto for_bf16, auto for_float8) {
    const int heads = shape.num_heads + 2 * shape.num_kv_heads;
    const int64_t threads = int64_t{step.rows} * heads * (shape.head_dim / 2 / kPerLoad);
    return LaunchEarly(pages.is_float8 ? for_float8 : for_bf16, static_cast<int>((threads + kThreads - 1) / kThreads),
                       kThreads, 0, stream, step, shape, rotation, pages, qkv);
  };
  switch (shape.head_dim) {
    case 32:
      return launch(RopeAndAppendKernel<32, __nv_bfloat16>, RopeAndAppendKernel<32, __nv_fp8_e4m3>);
    case 64:
      return launch(RopeAndAppendKernel<64, __nv_bfloat16>, RopeAndAppendKernel<64, __nv_fp8_e4m3>);
    default:
      return launch(RopeAndAppendKernel<128, __nv_bfloat16>, RopeAndAppendKernel<128, __nv_fp8_e4m3>);
  }
}

}  // namespace tandem
