#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/kv_layout.h"
#include "engine/ops.h"
#include "engine/rank_group.h"
#include "model/checkpoint.h"
#include "model/model_config.h"

namespace tandem {

// What the buffers of CudaOps are made for.
struct CudaOpsOptions {
  int device = 0;
  int max_rows = 0;       // Of a step.
  int max_sequences = 0;  // Of a step.
  int64_t max_pages_of_sequence = 0;
  KvLayout kv_layout;          // But for the number of pages.
  int64_t weight_bytes = 0;    // That will be prepared, for the progress that is logged.
  RankGroup* ranks = nullptr;  // Where there are several; outlives the ops.
};

// The ops on an NVIDIA GPU (compute capability 9.0 or newer): bf16 weights, activations and KV, or KV of FP8, sums in
// f32; weights of other types become bf16, but for FP8 ones (cuda_weights.h). Steps that decode are recorded as CUDA
// graphs, one for each of some batch sizes.
//
// Work is only enqueued; CollectSamples waits. A failure of the GPU, or a step that does not end within 20 s, ends the
// process (cuda_check.h).
//
// UNAVAILABLE: there is no such device. UNIMPLEMENTED: it is too old, or the model's heads have a size without kernels.
// RESOURCE_EXHAUSTED: its memory is full. FAILED_PRECONDITION: the ranks' GPUs cannot see each other's memory.
// `config`: of the rank's share.
absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(const CudaOpsOptions& options, const ModelConfig& config);

// UNIMPLEMENTED, with the key of config.json or the topology: a size that there are no kernels for. Needs no device.
absl::Status CheckCudaModel(const ModelConfig& config, int ranks);

// Bytes that a rank's share of a model's weights takes on its device, a Hopper. On others FP8 weights become bf16.
int64_t CudaWeightBytes(const Checkpoint& checkpoint, int ranks);

// Bytes free on the device now. UNAVAILABLE: there is no such device.
absl::StatusOr<int64_t> FreeDeviceBytes(int device);

}  // namespace tandem
