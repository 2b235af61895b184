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
// throughout; log probabilities are taken there, too. The whole step is waited for then. Tokens that a format forbids
// are taken out on the device, unless the log probabilities of all are wanted.
//
// Thread-safety: not thread-safe. Ownership: owns buffers and events; the stream outlives it.
class DeviceSampler {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(int max_rows, cudaStream_t stream);
  ~DeviceSampler();

  // Whether the next token of such a request can be chosen before this one is known to the host.
  static bool SamplesAhead(const SamplingParams& params) { return IsForDevice(params) && params.format == nullptr; }
  // Where the last step's tokens lie on the device, [rows].
  const int32_t* tokens() const { return tokens_.as<const int32_t>(); }

  // `logits`: [inputs.size()][columns], the device's; what no format allows is overwritten. A step with formats is to
  // be collected before the next one starts.
  void Start(float* logits, int64_t columns, absl::Span<const SampleInput> inputs);
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
  // Whether nothing of such a request is done on the host.
  static bool IsForDevice(const SamplingParams& params) {
    return IsChosenOnDevice(params) && !params.logprobs.has_value();
  }
  static bool IsChosenOnDevice(const SamplingParams& params);
  // Takes out the tokens that formats of requests for the device forbid.
  void ApplyFormats(float* logits, int64_t columns, absl::Span<const SampleInput> inputs);
  // Waits for what the device chose, and fills it in.
  void Complete(Pending& pending);
  // Chooses those that the device does not, and takes log probabilities.
  void SampleOnHost(const float* logits, int64_t columns, absl::Span<const SampleInput> inputs, Pending& pending);
  void AwaitEvent(cudaEvent_t event);

  const cudaStream_t stream_;
  DeviceMemory tokens_;
  std::unique_ptr<StagingRing> staging_;
  DeviceMemory masks_;         // Pinned: rows, and their masks; grows with the requests that have formats.
  size_t masks_capacity_ = 0;  // In bytes.
  std::vector<Slot> slots_;
  size_t next_slot_ = 0;
  std::deque<Pending> pending_;
};

}  // namespace tandem
