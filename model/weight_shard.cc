#include "model/weight_shard.h"

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace tandem {

Cut CutOf(absl::string_view name) {
  if (absl::EndsWith(name, ".bias")) return CutOf(absl::string_view(name).substr(0, name.size() - 5));
  for (absl::string_view rows : {".q", ".k", ".v", ".gate", ".up"}) {
    if (absl::EndsWith(name, rows)) return Cut::kRows;
  }
  if (absl::EndsWith(name, ".o") || absl::EndsWith(name, ".down")) return Cut::kColumns;
  return name == "lm_head" ? Cut::kRows : Cut::kNone;
}

absl::Status CheckShards(const Checkpoint& checkpoint, int size) {
  const ModelConfig& config = checkpoint.config();
  struct Size {
    const char* name;
    int value;
  };
  for (const Size& each : {Size{"key and value heads", config.num_kv_heads}, Size{"attention heads", config.num_heads},
                           Size{"feed-forward width", config.intermediate_size},
                           Size{"expert width", config.moe.intermediate_size}, Size{"vocabulary", config.vocab_size}}) {
    if (each.value % size != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("parallelism.tp: ", size, " ranks do not divide the model's ", each.name, " of ", each.value));
    }
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const BlockShape block = DTypeBlock(tensor.dtype);
    if (CutOf(name) != Cut::kColumns || tensor.columns() % (int64_t{block.elements} * size) == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("parallelism.tp: ", size, " ranks do not divide the ",
                                                   tensor.columns(), " columns of ", tensor.name, ", in blocks of ",
                                                   block.elements, " (", DTypeName(tensor.dtype), ")"));
  }
  return absl::OkStatus();
}

ModelConfig ShardConfig(const ModelConfig& config, int size) {
  ModelConfig own = config;
  own.num_heads /= size;
  own.num_kv_heads /= size;
  own.intermediate_size /= size;
  own.moe.intermediate_size /= size;
  return own;
}

TensorView ShardRows(const TensorView& tensor, const Shard& shard) {
  TensorView part = tensor;
  part.shape[0] /= shard.size;
  const size_t bytes = tensor.data.size() / shard.size;
  part.data = tensor.data.subspan(bytes * shard.rank, bytes);
  part.scales.first_row += shard.rank * part.shape[0];
  return part;
}

TensorView ShardColumns(const TensorView& tensor, const Shard& shard, std::vector<uint8_t>& storage) {
  TensorView part = tensor;
  part.shape.back() /= shard.size;
  const int64_t rows = tensor.rows();
  const size_t row_bytes = tensor.data.size() / rows, part_bytes = row_bytes / shard.size;
  storage.resize(rows * part_bytes);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(storage.data() + row * part_bytes, tensor.data.data() + row * row_bytes + shard.rank * part_bytes,
                part_bytes);
  }
  part.data = storage;
  part.scales.first_column += shard.rank * part.columns();
  return part;
}

}  // namespace tandem
