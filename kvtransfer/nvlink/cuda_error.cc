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

}  // namespace tandem
