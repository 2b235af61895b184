#include "engine/cuda/float8_kernels.h"

#include <cuda_fp8.h>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"

namespace tandem {
namespace {

constexpr int kWarps = 8;
constexpr int kPerLane = kFloat8Block / 32;  // Elements: 8 bytes of the input, 4 of the codes.
constexpr float kLargest = 448, kLeastMaximum = 1e-4f;

// A warp for each block of a row.
__global__ void __launch_bounds__(kWarps * 32)
    QuantiseRowsKernel(const __nv_bfloat16* in, int rows, int padded_rows, int columns, uint8_t* codes, float* scales) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int lane = threadIdx.x % 32, blocks = columns / kFloat8Block;
  const int64_t task = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (task >= int64_t{padded_rows} * blocks) return;
  const int row = static_cast<int>(task / blocks), block = static_cast<int>(task % blocks);
  const int64_t at = int64_t{row} * columns + block * kFloat8Block + lane * kPerLane;
  float values[kPerLane] = {};
  if (row < rows) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(in + at);
    const float2 low = UnpackPair(loaded.x), high = UnpackPair(loaded.y);
    values[0] = low.x, values[1] = low.y, values[2] = high.x, values[3] = high.y;
  }
  float largest = kLeastMaximum;
#pragma unroll
  for (float value : values) largest = fmaxf(largest, fabsf(value));
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  const float scale = largest / kLargest;
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    packed |= static_cast<uint32_t>(__nv_cvt_float_to_fp8(values[i] / scale, __NV_SATFINITE, __NV_E4M3)) << (8 * i);
  }
  *reinterpret_cast<uint32_t*>(codes + at) = packed;
  if (lane == 0) scales[int64_t{block} * padded_rows + row] = scale;
}

__global__ void __launch_bounds__(kWarps * 32)
    WidenPagesKernel(const uint8_t* base, int64_t page_bytes, int64_t run_bytes, const int32_t* pages, uint4* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const uint4* from = reinterpret_cast<const uint4*>(base + pages[blockIdx.x] * page_bytes);
  const int64_t loads = run_bytes / 16;
  uint4* to = out + blockIdx.x * loads * 2;
  // Every value of E4M3 is one of bf16.
  const auto widen = [](uint32_t codes) {
    const uint32_t halves = WidenToHalves(codes);
    const float2 values = __half22float2(*reinterpret_cast<const __half2*>(&halves));
    return PackPair(values.x, values.y);
  };
  for (int64_t i = threadIdx.x; i < loads; i += blockDim.x) {
    const uint4 codes = from[i];
    to[2 * i] =
        make_uint4(widen(codes.x & 0xffff), widen(codes.x >> 16), widen(codes.y & 0xffff), widen(codes.y >> 16));
    to[2 * i + 1] =
        make_uint4(widen(codes.z & 0xffff), widen(codes.z >> 16), widen(codes.w & 0xffff), widen(codes.w >> 16));
  }
}

}  // namespace

cudaError_t LaunchWidenPages(const uint8_t* base, int64_t page_bytes, int64_t run_bytes, const int32_t* pages,
                             int num_pages, __nv_bfloat16* out, cudaStream_t stream) {
  return LaunchEarly(WidenPagesKernel, num_pages, kWarps * 32, 0, stream, base, page_bytes, run_bytes, pages,
                     reinterpret_cast<uint4*>(out));
}

cudaError_t LaunchQuantiseRows(const __nv_bfloat16* in, int rows, int padded_rows, int columns, uint8_t* codes,
                               float* scales, cudaStream_t stream) {
  const int64_t tasks = int64_t{padded_rows} * (columns / kFloat8Block);
  return LaunchEarly(QuantiseRowsKernel, static_cast<int>((tasks + kWarps - 1) / kWarps), kWarps * 32, 0, stream, in,
                     rows, padded_rows, columns, codes, scales);
}

}  // namespace tandem
