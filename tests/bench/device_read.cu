#include "tests/bench/device_read.h"

namespace tandem {
namespace {

constexpr int kThreads = 512, kBlocksPerMultiprocessor = 4, kLoads = 8;

__device__ uint4 LoadOnce(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// Each block reads runs of kThreads * kLoads vectors.
__global__ void __launch_bounds__(kThreads) ReadKernel(const uint4* from, int64_t vectors, uint32_t* sink) {
  uint32_t all = 0;
  constexpr int64_t kRun = kThreads * kLoads;
  for (int64_t run = blockIdx.x * kRun; run < vectors; run += gridDim.x * kRun) {
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t at = run + i * kThreads + threadIdx.x;
      values[i] = at < vectors ? LoadOnce(from + at) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) all |= values[i].x | values[i].y | values[i].z | values[i].w;
  }
  // So that the loads cannot be left out.
  if (__syncthreads_or(all != 0) == 0 && threadIdx.x == 0) *sink = 1;
}

}  // namespace

cudaError_t LaunchDeviceRead(const void* from, int64_t bytes, int multiprocessors, uint32_t* sink,
                             cudaStream_t stream) {
  ReadKernel<<<multiprocessors * kBlocksPerMultiprocessor, kThreads, 0, stream>>>(static_cast<const uint4*>(from),
                                                                                  bytes / 16, sink);
  return cudaGetLastError();
}

}  // namespace tandem
