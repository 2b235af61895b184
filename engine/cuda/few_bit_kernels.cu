#include "engine/cuda/few_bit_code.cuh"
#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/launch.h"

namespace tandem {
namespace {

constexpr int kThreads = 256;

// A thread takes 16 bytes of codes: 4 neighbours each in places 16 features apart.
template <WeightKind kKind>
__global__ void __launch_bounds__(kThreads)
    WidenWeightKernel(FewBitWeight weight, int64_t rows, int64_t columns, __nv_bfloat16* out) {
  constexpr int kStep = kStepFeatures<kKind>;
  LetNextKernelBegin();
  WaitForEarlierKernels();  // `out` may still be read.
  const int64_t chunks_of_row = columns / kStep * 4;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (chunk >= rows * chunks_of_row) return;
  const int64_t row = chunk / chunks_of_row;
  const int place = static_cast<int>(chunk - row * chunks_of_row), quad = place % 4;
  const int64_t first = static_cast<int64_t>(place / 4) * kStep;
  const uint4 codes = LoadStreamed(weight.codes + chunk * 16);
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  const float factor = weight.factors[row];
  __nv_bfloat16* to = out + row * columns + first + quad * 4;
  const auto store = [&](int product, uint32_t one, uint32_t other) {
    const float2 a = UnpackPair(one), b = UnpackPair(other);
    *reinterpret_cast<uint2*>(to + product * 16) =
        make_uint2(PackPair(a.x * factor, a.y * factor), PackPair(b.x * factor, b.y * factor));
  };
  if constexpr (kKind == WeightKind::kInt8) {
#pragma unroll
    for (int m = 0; m < 4; ++m) store(m, WidenBytes(words[m], 0), WidenBytes(words[m], 1));
  } else {
    const __nv_bfloat16* scales = weight.scales + row * weight.scale_columns;
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const __nv_bfloat16 scale = scales[(first + m * 16) >> weight.group_bits];
      const uint32_t both = Twice(__bfloat16_as_ushort(scale), 0);
      store(m, WidenNibbles<kKind>(words[m / 2], m % 2 * 2, both),
            WidenNibbles<kKind>(words[m / 2], m % 2 * 2 + 1, both));
    }
  }
}

}  // namespace

cudaError_t LaunchWidenWeight(const FewBitWeight& weight, int64_t out_features, int64_t in_features, __nv_bfloat16* out,
                              cudaStream_t stream) {
  const int64_t chunks = out_features * (in_features / StepFeatures(weight.kind)) * 4;
  const auto launch = [&](auto kernel) {
    return LaunchEarly(kernel, static_cast<unsigned>((chunks + kThreads - 1) / kThreads), kThreads, 0, stream, weight,
                       out_features, in_features, out);
  };
  switch (weight.kind) {
    case WeightKind::kInt8:
      return launch(WidenWeightKernel<WeightKind::kInt8>);
    case WeightKind::kInt4:
      return launch(WidenWeightKernel<WeightKind::kInt4>);
    case WeightKind::kFloat4:
      return launch(WidenWeightKernel<WeightKind::kFloat4>);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace tandem
