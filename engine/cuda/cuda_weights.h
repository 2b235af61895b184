#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/weight_upload.h"
#include "engine/ops.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// Makes a model's weights on the current device, as the Prepare ops say: in their few bits (few_bit_weight.h), in FP8
// where that stays (float8_weight.h) and the device is a Hopper, for which cuBLAS has products of it, else in bf16.
//
// Thread-safety: not thread-safe. Ownership: owns what uploads need; the stream outlives it.
class CudaWeights {
 public:
  // `config`: of the rank's share. `expected_bytes`: of all weights.
  static absl::StatusOr<std::unique_ptr<CudaWeights>> Create(const ModelConfig& config, int compute_major,
                                                             int64_t expected_bytes, cudaStream_t stream);

  absl::StatusOr<std::unique_ptr<LinearWeight>> Linear(absl::Span<const TensorView> parts,
                                                       absl::Span<const TensorView> biases);
  absl::StatusOr<std::unique_ptr<VectorWeight>> Vector(const TensorView& tensor);
  absl::StatusOr<std::unique_ptr<EmbeddingTable>> Embedding(const TensorView& tensor);
  // Input features of the widest FP8 layer so far; 0: there is none.
  int64_t float8_columns() const { return float8_columns_; }
  // Weights of the largest layer of few bits so far.
  int64_t few_bit_elements() const { return few_bit_elements_; }

 private:
  CudaWeights(const ModelConfig& config, int compute_major, cudaStream_t stream)
      : config_(config), compute_major_(compute_major), stream_(stream) {}
  // In bf16 or, with is_float8, as they are.
  absl::StatusOr<DeviceMemory> Upload(absl::Span<const TensorView> parts, bool is_float8 = false);
  // Returns when the device has it.
  absl::StatusOr<DeviceMemory> UploadTable(const void* data, size_t bytes);
  absl::StatusOr<std::unique_ptr<LinearWeight>> FewBitLinear(absl::Span<const TensorView> parts, WeightKind kind,
                                                             int64_t out, DeviceMemory bias);

  const ModelConfig config_;
  const int compute_major_;
  const cudaStream_t stream_;
  std::unique_ptr<WeightUpload> upload_;
  // The embedding, which a tied head shares: where it lies in the checkpoint, and on the device.
  absl::Span<const uint8_t> embedding_;
  std::weak_ptr<DeviceMemory> embedding_memory_;
  int64_t float8_columns_ = 0, few_bit_elements_ = 0;
};

}  // namespace tandem
