#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace tandem {

// OK, or what CUDA said of `call`: RESOURCE_EXHAUSTED for memory, PERMISSION_DENIED, UNIMPLEMENTED for what the device
// does not support, else INTERNAL.
absl::Status CudaStatus(cudaError_t error, absl::string_view call);
absl::Status CudaStatus(CUresult result, absl::string_view call);

}  // namespace tandem
