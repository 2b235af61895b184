#include "engine/cuda/staging_ring.h"

#include <utility>

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<StagingRing>> StagingRing::Create(size_t bytes, cudaStream_t stream) {
  std::unique_ptr<StagingRing> ring(new StagingRing(bytes, stream));
  for (Buffer& buffer : ring->buffers_) {
    ASSIGN_OR_RETURN(buffer.memory, DeviceMemory::Allocate(DeviceMemory::Kind::kPinned, bytes));
    CheckCuda(cudaEventCreateWithFlags(&buffer.read, cudaEventDisableTiming), "cudaEventCreate");
  }
  return ring;
}

StagingRing::~StagingRing() {
  for (Buffer& buffer : buffers_) {
    if (buffer.read == nullptr) continue;
    cudaEventSynchronize(buffer.read);
    cudaEventDestroy(buffer.read);
  }
}

uint8_t* StagingRing::Acquire() {
  current_ = (current_ + 1) % buffers_.size();
  CheckCuda(cudaEventSynchronize(buffers_[current_].read), "cudaEventSynchronize");
  return buffers_[current_].memory.as<uint8_t>();
}

void StagingRing::Release() { CheckCuda(cudaEventRecord(buffers_[current_].read, stream_), "cudaEventRecord"); }

}  // namespace tandem
