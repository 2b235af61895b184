#pragma once

#include <cuda_runtime_api.h>

namespace tandem {

// Kernels that fail, for fault drills: see gpu_fault.h.
cudaError_t LaunchWriteNowhere(cudaStream_t stream);
cudaError_t LaunchSpinForEver(cudaStream_t stream);

}  // namespace tandem
