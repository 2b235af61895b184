#pragma once

#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/kv_layout.h"
#include "engine/ops.h"
#include "model/checkpoint.h"
#include "model/weight_shard.h"

namespace tandem {

// Called on the engine thread, inside Forward, when the KV of layers [begin, end) of the whole
// batch is in the pages.
using LayersDone = absl::FunctionRef<void(int begin, int end)>;

// A model family: a sequence of calls on Ops. One that is one of several ranks computes with its shard of the weights;
// rank 0 has the logits.
//
// Thread-safety: not thread-safe; the engine thread owns it.
// Ownership: owns its weights; borrows the ops and the checkpoint, which outlive it.
class DecoderModel {
 public:
  virtual ~DecoderModel() = default;
  // Appends the batch's KV to its pages and leaves the logits [batch.logit_rows.size(), vocabulary]
  // in the result, which is valid until the next call. `group_layers`: how many layers per call of
  // layers_done.
  virtual const Activation& Forward(const StepBatch& batch, const KvPoolView& kv, int group_layers,
                                    LayersDone layers_done) = 0;
};

// Shape of a model's KV, but for page_tokens, element_bytes and num_pages.
KvLayout KvShape(const ModelConfig& config);

// Prepares the weights of a shard for steps of up to `max_rows` tokens, `max_logit_rows` of which want logits.
// UNIMPLEMENTED for families without code. The shard is one that CheckShards allows.
absl::StatusOr<std::unique_ptr<DecoderModel>> LoadDecoderModel(const Checkpoint& checkpoint, const Shard& shard,
                                                               Ops& ops, int max_rows, int max_logit_rows);

}  // namespace tandem
