#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// Reads `bytes` (a multiple of 16) of device memory once, with as many loads in flight as a card takes; `sink`, a word
// of device memory, is written to only if the memory is all zeros. For measuring what reading alone can reach.
cudaError_t LaunchDeviceRead(const void* from, int64_t bytes, int multiprocessors, uint32_t* sink, cudaStream_t stream);

}  // namespace tandem
