#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/staging_ring.h"
#include "engine/cuda/step_view.h"
#include "engine/ops.h"

namespace tandem {

// What a step is about, on the device: tokens, positions, sequences, pages.
//
// Steps of as many rows, sequences and logit rows have their arrays at the same places, so that a recorded step finds
// those of the one that it is replayed for.
//
// Thread-safety: not thread-safe. Ownership: owns the memory; the stream outlives it.
class StepInputs {
 public:
  struct Limits {
    int max_rows = 0;
    int max_sequences = 0;
    int64_t max_pages = 0;  // Of all sequences of a step.
  };
  static absl::StatusOr<std::unique_ptr<StepInputs>> Create(const Limits& limits, const AttentionSplitter& splitter,
                                                            cudaStream_t stream);

  // Enqueues the copy of a step, filled up to `padded_rows` with sequences of one row and no context where that is
  // more than it has; it has as many sequences and logit rows as rows then. Its parts are those of sequences with one
  // row or, with `keeps_whole`, all sequences as they are. Has as many logit rows as sequences at most.
  StepView Upload(const StepBatch& batch, int padded_rows, bool keeps_whole);

 private:
  StepInputs(const AttentionSplitter& splitter, cudaStream_t stream) : splitter_(splitter), stream_(stream) {}
  const AttentionSplitter splitter_;
  const cudaStream_t stream_;
  DeviceMemory device_;
  std::unique_ptr<StagingRing> ring_;
};

}  // namespace tandem
