#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// OK, or what CUDA said of `call`: RESOURCE_EXHAUSTED for memory, PERMISSION_DENIED, UNIMPLEMENTED for what the device
// does not support, else INTERNAL.
absl::Status CudaStatus(cudaError_t error, absl::string_view call);
absl::Status CudaStatus(CUresult result, absl::string_view call);
// Whether what was recorded last in `event`, if anything, is over. Errors: the device failed.
absl::StatusOr<bool> IsOver(cudaEvent_t event);

}  // namespace tandem
