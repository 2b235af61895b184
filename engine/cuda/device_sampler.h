#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/staging_ring.h"
#include "engine/sampling.h"

namespace tandem {

// Chooses tokens on the device. Requests that look at more than the logits (penalties, biases, tokens that must not
// come yet) are chosen for on the host by SampleToken, all of a request's tokens, so that a seed means the same
// throughout; log probabilities are taken there, too. The whole step is waited for then.
//
// Thread-safety: not thread-safe. Ownership: owns buffers and events; the stream outlives it.
class DeviceSampler {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(int max_rows, cudaStream_t stream);
  ~DeviceSampler();

  // Whether nothing of such a request is done on the host.
  static bool IsForDevice(const SamplingParams& params) {
    return IsChosenOnDevice(params) && !params.logprobs.has_value();
  }
  // Where the last step's tokens lie on the device, [rows].
  const int32_t* tokens() const { return tokens_.as<const int32_t>(); }

  // `logits`: [inputs.size()][columns], the device's.
  void Start(const float* logits, int64_t columns, absl::Span<const SampleInput> inputs);
  // Results of the oldest Start that was not collected. A step that takes longer than 20 s ends the process.
  std::vector<SampledToken> Collect();

 private:
  // A Start that was not collected.
  struct Pending {
    std::vector<SampledToken> tokens;  // One for each row.
    bool is_known = false;             // They are what was chosen.
    size_t slot = 0;
  };
  // Where results come to the host.
  struct Slot {
    DeviceMemory results;  // Pinned.
    cudaEvent_t arrived = nullptr;
  };
  explicit DeviceSampler(cudaStream_t stream) : stream_(stream) {}
  static bool IsChosenOnDevice(const SamplingParams& params);
  // Waits for what the device chose, and fills it in.
  void Complete(Pending& pending);
  // Chooses those that the device does not, and takes log probabilities.
  void SampleOnHost(const float* logits, int64_t columns, absl::Span<const SampleInput> inputs, Pending& pending);
  void AwaitEvent(cudaEvent_t event);

  const cudaStream_t stream_;
  DeviceMemory tokens_;
  std::unique_ptr<StagingRing> staging_;
  std::vector<Slot> slots_;
  size_t next_slot_ = 0;
  std::deque<Pending> pending_;
};

}  // namespace tandem
