#include "engine/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/units.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(Kind kind, size_t bytes) {
  DeviceMemory memory;
  memory.kind_ = kind;
  bytes = std::max<size_t>(bytes, 16);
  const cudaError_t error =
      kind == Kind::kDevice ? cudaMalloc(&memory.data_, bytes) : cudaMallocHost(&memory.data_, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(
        kind == Kind::kDevice ? absl::StrCat("the GPU has no room for ", FormatBytes(static_cast<int64_t>(bytes)), ": ",
                                             FormatBytes(static_cast<int64_t>(free)), " of ",
                                             FormatBytes(static_cast<int64_t>(total)), " are free")
                              : absl::StrCat("no pinned memory for ", FormatBytes(static_cast<int64_t>(bytes))));
  }
  CheckCuda(error, "cudaMalloc");
  if (kind == Kind::kDevice) {
    CheckCuda(cudaMemset(memory.data_, 0, bytes), "cudaMemset");
    // Streams that do not wait for the default one may use it next.
    CheckCuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  return memory;
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr) return;
  kind_ == Kind::kDevice ? cudaFree(data_) : cudaFreeHost(data_);
}

}  // namespace tandem
