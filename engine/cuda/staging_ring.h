#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/cuda/device_memory.h"

namespace tandem {

// Pinned buffers that the device copies from, or reads where they are, used in turn, so that the host fills one while
// the device has yet to read another.
//
// Thread-safety: not thread-safe.
// Ownership: owns buffers and events; the stream outlives it.
class StagingRing {
 public:
  static absl::StatusOr<std::unique_ptr<StagingRing>> Create(size_t bytes, cudaStream_t stream);
  ~StagingRing();

  // The next buffer, when what was enqueued before its last Release is over.
  uint8_t* Acquire();
  // What reads the last acquired buffer has been enqueued.
  void Release();
  size_t bytes() const { return bytes_; }

 private:
  StagingRing(size_t bytes, cudaStream_t stream) : bytes_(bytes), stream_(stream) {}
  struct Buffer {
    DeviceMemory memory;
    cudaEvent_t read = nullptr;
  };
  const size_t bytes_;
  const cudaStream_t stream_;
  std::array<Buffer, 4> buffers_;
  size_t current_ = 0;
};

}  // namespace tandem
