#include "engine/cuda/cuda_check.h"

#include <unistd.h>

#include "common/log.h"

namespace tandem {

void CheckCuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) EndAfterGpuFailure(call, cudaGetErrorString(error));
}

void EndAfterGpuFailure(const char* call, const char* error) {
  LogError("the GPU failed, and this worker ends", {{"call", call}, {"error", error}});
  _exit(kGpuFailedExitCode);
}

}  // namespace tandem
