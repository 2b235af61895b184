#include "engine/cuda/fault_kernels.h"

namespace tandem {
namespace {

__global__ void WriteNowhere() { *reinterpret_cast<volatile int*>(16) = 1; }
__global__ void SpinForEver() {
  while (true) __nanosleep(1000);
}

}  // namespace

cudaError_t LaunchWriteNowhere(cudaStream_t stream) {
  WriteNowhere<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

cudaError_t LaunchSpinForEver(cudaStream_t stream) {
  SpinForEver<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

}  // namespace tandem
