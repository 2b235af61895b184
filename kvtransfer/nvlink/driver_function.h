#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/cuda_error.h"

namespace tandem {

// Finds a function of the CUDA driver by the name of its symbol, so that no program is linked with the driver.
// UNAVAILABLE: this driver has none.
template <typename Function>
absl::Status FindDriverFunction(const char* name, Function* function) {
  cudaDriverEntryPointQueryResult found;
  void* address = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGetDriverEntryPointByVersion(name, &address, CUDA_VERSION, cudaEnableDefault, &found),
                             "cudaGetDriverEntryPointByVersion"));
  if (found != cudaDriverEntryPointSuccess) {
    return absl::UnavailableError(absl::StrCat("this CUDA driver has no ", name));
  }
  *function = reinterpret_cast<Function>(address);
  return absl::OkStatus();
}

}  // namespace tandem
