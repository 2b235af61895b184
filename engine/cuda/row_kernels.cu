#include "engine/cuda/row_kernels.h"

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

// A warp for each head of each row. Kv: the pages' type.
template <int kHeadDim, typename Kv>
__global__ void __launch_bounds__(kThreads)
    RopeAndAppendKernel(StepView step, HeadShape shape, HeadRotation rotation, LayerPages pages, __nv_bfloat16* qkv) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int row = blockIdx.x;
  const SequenceView sequence = step.sequences[step.sequence_of_row[row]];
  if (sequence.context_tokens == 0) return;
  const int position = step.positions[row];
  const int page = step.pages[sequence.first_page + position / pages.page_tokens];
  uint8_t* slot = pages.base + page * pages.page_bytes + position % pages.page_tokens * (kHeadDim * sizeof(Kv));
  const float2* turns = rotation.turns + static_cast<int64_t>(row) * (kHeadDim / 2);
  const int heads = shape.num_heads + 2 * shape.num_kv_heads;
  __nv_bfloat16* rows = qkv + static_cast<int64_t>(row) * heads * kHeadDim;
  for (int head = threadIdx.x / 32; head < heads; head += kThreads / 32) {
    __nv_bfloat16* in = rows + head * kHeadDim;
    if (head < shape.num_heads) {
      RotateHead<kHeadDim>(in, rotation.q_norm, rotation.epsilon, turns, rotation.adjacent_pairs, in);
      continue;
    }
    const int kv_head = (head - shape.num_heads) % shape.num_kv_heads;
    const bool is_key = head < shape.num_heads + shape.num_kv_heads;
    auto* out = reinterpret_cast<Kv*>(slot + kv_head * pages.head_bytes + (is_key ? 0 : pages.value_offset));
    if (is_key) {
      RotateHead<kHeadDim>(in, rotation.k_norm, rotation.epsilon, turns, rotation.adjacent_pairs, out);
    } else {
      for (int i = threadIdx.x % 32; i < kHeadDim; i += 32) Put(out[i], __bfloat162float(in[i]));
    }
  }
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
    return LaunchEarly(pages.is_float8 ? for_float8 : for_bf16, step.rows, kThreads, 0, stream, step, shape, rotation,
                       pages, qkv);
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
