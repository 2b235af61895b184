#include "engine/cuda/cuda_check.h"

#include <unistd.h>

#include "common/log.h"

namespace tandem {

void CheckCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  LogError("the GPU failed, and this worker ends",
           {{"call", call}, {"error", cudaGetErrorName(error)}, {"meaning", cudaGetErrorString(error)}});
  _exit(kGpuFailedExitCode);
}

void CheckCublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  LogError("the GPU failed, and this worker ends", {{"call", call}, {"error", cublasLtGetStatusName(status)}});
  _exit(kGpuFailedExitCode);
}

}  // namespace tandem
