#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "common/source_event.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// A device's memory as PoolMemory: copies and sums are kernels of ours on a stream of its own.
//
// Thread-safety: thread-safe. RESOURCE_EXHAUSTED: no memory for copy lists.
absl::StatusOr<std::unique_ptr<PoolMemory>> NewCudaMemory(int device);

// A point in a stream of the source's device, as the event of a write.
//
// Ownership: owns the CUDA event.
class CudaSourceEvent final : public SourceEvent {
 public:
  // Behind what is in the stream now.
  static absl::StatusOr<std::shared_ptr<const CudaSourceEvent>> Record(int device, cudaStream_t stream);
  ~CudaSourceEvent() override;
  absl::StatusOr<bool> PollReady() const override;
  absl::Status Wait() const;

 private:
  explicit CudaSourceEvent(int device) : device_(device) {}
  const int device_;
  cudaEvent_t event_ = nullptr;
};

}  // namespace tandem
