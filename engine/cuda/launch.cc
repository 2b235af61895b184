#include "engine/cuda/launch.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

namespace tandem {
namespace {

std::atomic<SharedMemory> usual_division = SharedMemory::kCache;

int PercentOf(SharedMemory division) {
  if (division == SharedMemory::kUsual) division = usual_division;
  return division == SharedMemory::kMost ? cudaSharedmemCarveoutMaxShared : 44;
}

}  // namespace

void SetUsualDivision(SharedMemory division) { usual_division = division; }
SharedMemory UsualDivision() { return usual_division; }

cudaError_t PrepareKernel(const void* kernel, size_t shared_bytes, SharedMemory division) {
  // One thread launches, on one device.
  thread_local std::unordered_map<const void*, size_t> prepared;
  auto [entry, is_new] = prepared.emplace(kernel, 0);
  if (!is_new && entry->second >= shared_bytes) return cudaSuccess;
  entry->second = std::max(entry->second, shared_bytes);
  cudaError_t error = cudaSuccess;
  if (is_new) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, PercentOf(division));
  }
  if (error == cudaSuccess && shared_bytes > 0) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  return error;
}

}  // namespace tandem
