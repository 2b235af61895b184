#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/cuda/cuda_ops.h"
#include "engine/cuda/cuda_tensors.h"
#include "engine/cuda/few_bit_weight.h"
#include "engine/cuda/float8_weight.h"
#include "engine/cuda/moe_kernels.h"
#include "engine/cuda/rank_kernels.h"
#include "model/weight_shard.h"

// What is asked about a model and a device before there are ops.

namespace tandem {

absl::Status CheckCudaModel(const ModelConfig& whole, int ranks) {
  const ModelConfig config = ShardConfig(whole, ranks);
  if (ranks > kMaxRanks) {
    return absl::UnimplementedError(
        absl::StrCat("parallelism.tp: ", ranks, "; device cuda takes ", kMaxRanks, " at most"));
  }
  if (config.head_dim != 32 && config.head_dim != 64 && config.head_dim != 128) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim: ", config.head_dim, "; device cuda has kernels for 32, 64 and 128"));
  }
  for (const auto& [name, size] : {std::pair{"hidden_size", config.hidden_size},
                                   {"intermediate_size", config.intermediate_size},
                                   {"moe_intermediate_size", config.moe.intermediate_size}}) {
    if (size % 8 != 0) {
      return absl::UnimplementedError(
          absl::StrCat(name, ": ", size, ranks > 1 ? " for each rank" : "", "; device cuda takes multiples of 8"));
    }
  }
  if (config.moe.num_experts > kMaxExperts) {
    return absl::UnimplementedError(
        absl::StrCat("num_experts: ", config.moe.num_experts, "; device cuda takes ", kMaxExperts, " at most"));
  }
  return absl::OkStatus();
}

namespace {

// The matrices that are stacked to the layer that a weight belongs to, as a rank has them that has its share: their
// data and scales are those of the whole. Empty: it is no such layer.
std::vector<TensorView> LayerOf(const Checkpoint& checkpoint, const std::string& name, int ranks) {
  std::vector<TensorView> parts;
  for (const std::vector<absl::string_view>& together :
       {std::vector<absl::string_view>{".q", ".k", ".v"}, {".gate", ".up"}, {".o"}, {".down"}}) {
    const auto own = std::find_if(together.begin(), together.end(),
                                  [&](absl::string_view suffix) { return absl::EndsWith(name, suffix); });
    if (own == together.end()) continue;
    for (absl::string_view suffix : together) {
      absl::StatusOr<TensorView> part =
          checkpoint.FindTensor(absl::StrCat(absl::string_view(name).substr(0, name.size() - own->size()), suffix));
      if (!part.ok()) return {};
      // Shares are alike, so the first one's size says it of all.
      (CutOf(name) == Cut::kRows ? part->shape.front() : part->shape.back()) /= ranks;
      parts.push_back(*std::move(part));
    }
  }
  return parts;
}

// Bytes that a weight has on a device, and where it is of few bits, of what its layer is widened to for many rows.
struct WeightBytes {
  int64_t stored = 0, widened = 0;
};
WeightBytes BytesOf(const Checkpoint& checkpoint, const std::string& name, const TensorView& tensor, int ranks) {
  WeightBytes bytes{.stored = tensor.num_elements() * static_cast<int64_t>(sizeof(Bf16))};
  const std::vector<TensorView> layer = LayerOf(checkpoint, name, ranks);
  if (layer.empty()) return bytes;
  if (const WeightKind kind = FewBitKindOf(layer, checkpoint.config()); kind != WeightKind::kBf16) {
    const int64_t columns = tensor.columns(), group = std::min(tensor.scales.block_columns, columns);
    const int64_t scale_bytes = kind == WeightKind::kInt8 ? 0 : columns / group * static_cast<int64_t>(sizeof(Bf16));
    bytes.stored = tensor.rows() * (FewBitRowBytes(kind, columns) + scale_bytes + static_cast<int64_t>(sizeof(float)));
    for (const TensorView& part : layer) bytes.widened += part.num_elements() * static_cast<int64_t>(sizeof(Bf16));
  } else if (StayFloat8(layer, checkpoint.config())) {
    bytes.stored = tensor.num_elements();
  }
  return bytes;
}

}  // namespace

int64_t CudaWeightBytes(const Checkpoint& checkpoint, int ranks) {
  const bool is_tied = checkpoint.config().tied_embeddings;
  int64_t bytes = 0, widened = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (is_tied && name == "lm_head") continue;
    const WeightBytes own = BytesOf(checkpoint, name, tensor, ranks);
    bytes += own.stored / (CutOf(name) == Cut::kNone ? 1 : ranks);
    widened = std::max(widened, own.widened);
    // The embedding is whole on every rank, the head is not.
    if (is_tied && name == "embedding" && ranks > 1) bytes += own.stored / ranks;
  }
  return bytes + widened;
}

absl::StatusOr<int64_t> FreeDeviceBytes(int device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || device >= count) {
    cudaGetLastError();
    return absl::UnavailableError(error == cudaSuccess
                                      ? absl::StrCat("there is no GPU ", device, " here, but ", count)
                                      : absl::StrCat("no GPU can be used here: ", cudaGetErrorString(error)));
  }
  size_t free = 0, total = 0;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free, &total);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("GPU ", device, " cannot be used: ", cudaGetErrorString(error)));
  }
  return static_cast<int64_t>(free);
}

}  // namespace tandem
