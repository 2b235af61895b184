#include "kvtransfer/nvlink/cuda_error.h"

#include "absl/strings/str_cat.h"

namespace tandem {

absl::Status CudaStatus(cudaError_t error, absl::string_view call) {
  // The runtime's codes for what matters here are the driver's.
  absl::StatusCode code = absl::StatusCode::kInternal;
  switch (error) {
    case cudaSuccess:
      return absl::OkStatus();
    case cudaErrorMemoryAllocation:
      code = absl::StatusCode::kResourceExhausted;
      break;
    case cudaErrorNotPermitted:
      code = absl::StatusCode::kPermissionDenied;
      break;
    case cudaErrorNotSupported:
      code = absl::StatusCode::kUnimplemented;
      break;
    default:
      break;
  }
  return absl::Status(code, absl::StrCat(call, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

absl::Status CudaStatus(CUresult result, absl::string_view call) {
  return CudaStatus(static_cast<cudaError_t>(result), call);
}

absl::StatusOr<bool> IsOver(cudaEvent_t event) {
  const cudaError_t state = cudaEventQuery(event);
  if (state == cudaSuccess) return true;
  if (state != cudaErrorNotReady) return CudaStatus(state, "GPU work");
  cudaGetLastError();  // Stays behind otherwise, for others to stumble over.
  return false;
}

}  // namespace tandem
