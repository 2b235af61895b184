#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/kv_layout.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/prefill_attention.h"
#include "engine/cuda/staging_ring.h"
#include "engine/ops.h"

namespace tandem {

// Attention of a step's chunks, the sequences with more than one row, by prefill_attention. That reads bf16: pages of
// FP8 are widened first, layer by layer, into memory that holds a layer of the longest sequence.
//
// Thread-safety: not thread-safe. Ownership: owns its workspaces; the stream outlives it.
class ChunkAttention {
 public:
  struct Options {
    HeadShape shape;
    KvLayout layout;
    int64_t max_pages_of_sequence = 0;
    int max_rows = 0;  // Of a step.
    int multiprocessors = 0, compute_major = 0;
  };
  // Null where the device has no kernel for heads of this shape. RESOURCE_EXHAUSTED: its memory is full.
  static absl::StatusOr<std::unique_ptr<ChunkAttention>> Create(const Options& options, cudaStream_t stream);
  // Whether the chunks of a step are for it: not where several of them have more pages of FP8 than one sequence may.
  bool Takes(const StepBatch& batch) const;
  // Plans the chunks of a step that it takes, whose sequences of one row come first, and enqueues the copy of the plan.
  // False: there are none.
  bool Plan(const StepBatch& batch);
  // Enqueues attention of the chunks, by the last plan, once for each layer. `page_table`: of the step; `pages`: of the
  // layer.
  cudaError_t Attend(int layer, const LayerPages& pages, const int32_t* page_table, const __nv_bfloat16* qkv, int rows,
                     __nv_bfloat16* out);

 private:
  ChunkAttention(const Options& options, cudaStream_t stream) : options_(options), stream_(stream) {}
  bool is_float8() const { return options_.layout.element_bytes == 1; }
  // The plan: how many tiles of each layer are taken, none at first, and the tiles.
  int64_t taken_bytes() const { return options_.layout.num_layers * int64_t{sizeof(int32_t)}; }
  int64_t plan_bytes() const { return taken_bytes() + options_.max_rows * int64_t{sizeof(PrefillTile)}; }
  // Of all chunks; from which place of the page table.
  struct Pages {
    int first = 0, count = 0;
  };

  const Options options_;
  const cudaStream_t stream_;
  std::unique_ptr<StagingRing> staging_;
  DeviceMemory device_plan_;
  DeviceMemory widened_, numbers_;  // With FP8; the numbers from 0 are the page table of what was widened.
  int num_tiles_ = 0;
  Pages chunk_pages_;
};

}  // namespace tandem
