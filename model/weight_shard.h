#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "model/checkpoint.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// Which of a model's tensor-parallel ranks this is, of how many. A rank has its share of the heads, of the width of
// each feed-forward and of the vocabulary; norms, embedding and an expert router are whole on all.
struct Shard {
  int rank = 0;
  int size = 1;
};

// What a weight is cut along. The products of ranks that have rows are parts of the output, side by side; of those that
// have columns, summands.
enum class Cut { kNone, kRows, kColumns };

// INVALID_ARGUMENT, with the sizes, when a model's heads, widths or blocks of quantised weights do not divide.
absl::Status CheckShards(const Checkpoint& checkpoint, int size);

// The sizes of a rank's share.
ModelConfig ShardConfig(const ModelConfig& config, int size);

// A rank's rows [out, in], or elements of a bias [out]; borrows the tensor's data.
TensorView ShardRows(const TensorView& tensor, const Shard& shard);
// A rank's columns, copied to `storage`, which the result borrows. Blocks must divide (CheckShards).
TensorView ShardColumns(const TensorView& tensor, const Shard& shard, std::vector<uint8_t>& storage);

// How the weight of a name (Checkpoint's) is cut.
Cut CutOf(absl::string_view name);

}  // namespace tandem
