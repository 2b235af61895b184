#include "tests/gpu/pool_check.h"

#include <cuda_runtime_api.h>

#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/current_device.h"
#include "tests/gpu/gpu_peer.h"
#include "tests/gpu/page_pattern.h"

namespace tandem {

absl::Status FillPool(const DeviceBytes& pool, uint64_t seed) {
  const CurrentDevice current(pool.device);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(CudaStatus(FillPattern(pool.base, pool.bytes, seed, 0, cudaStreamPerThread), "fill"));
  return CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "fill");
}

absl::Status PoisonPool(const DeviceBytes& pool) {
  const CurrentDevice current(pool.device);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(pool.base, kPoison, pool.bytes, cudaStreamPerThread), "poison"));
  return CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "poison");
}

absl::Status CheckPool(const DeviceBytes& pool, absl::Span<const CopyRun> runs, uint64_t seed) {
  const CurrentDevice current(pool.device);
  RETURN_IF_ERROR(current.status());
  std::vector<ExpectedRun> expected;
  uint64_t bytes = 0;
  for (const CopyRun& run : runs) {
    expected.push_back(
        {static_cast<uint64_t>(run.source), static_cast<uint64_t>(run.destination), static_cast<uint64_t>(run.bytes)});
    bytes += run.bytes;
  }
  ExpectedRun* list = nullptr;
  unsigned long long* counts = nullptr;
  const absl::Cleanup free_all = [&] {
    cudaFree(list);
    cudaFreeHost(counts);
  };
  const size_t list_bytes = expected.size() * sizeof(ExpectedRun);
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&list), list_bytes), "cudaMalloc"));
  RETURN_IF_ERROR(CudaStatus(cudaMemcpy(list, expected.data(), list_bytes, cudaMemcpyHostToDevice), "cudaMemcpy"));
  RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&counts), 2 * sizeof(*counts), 0), "host memory"));
  counts[0] = counts[1] = 0;
  RETURN_IF_ERROR(
      CudaStatus(CountWrong(pool.base, list, expected.size(), seed, &counts[0], cudaStreamPerThread), "check"));
  RETURN_IF_ERROR(CudaStatus(CountPoison(pool.base, pool.bytes, kPoison, &counts[1], cudaStreamPerThread), "check"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "check"));
  const uint64_t untouched = (pool.bytes - bytes) / 16;
  if (counts[0] == 0 && counts[1] == untouched) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(counts[0], " of ", bytes / 16, " vectors are wrong; ", counts[1], " of ",
                                          untouched, " outside of the runs are untouched"));
}

}  // namespace tandem
