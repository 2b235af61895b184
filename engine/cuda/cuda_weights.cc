#include "engine/cuda/cuda_weights.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/cuda_tensors.h"
#include "engine/cuda/few_bit_weight.h"
#include "engine/cuda/float8_weight.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<CudaWeights>> CudaWeights::Create(const ModelConfig& config, int compute_major,
                                                                 int64_t expected_bytes, cudaStream_t stream) {
  std::unique_ptr<CudaWeights> weights(new CudaWeights(config, compute_major, stream));
  ASSIGN_OR_RETURN(weights->upload_, WeightUpload::Create(expected_bytes, stream));
  return weights;
}

absl::StatusOr<DeviceMemory> CudaWeights::Upload(absl::Span<const TensorView> parts, bool is_float8) {
  int64_t elements = 0;
  for (const TensorView& part : parts) elements += part.num_elements();
  const size_t element_bytes = is_float8 ? 1 : sizeof(Bf16);
  ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, elements * element_bytes));
  uint8_t* to = memory.as<uint8_t>();
  for (const TensorView& part : parts) {
    is_float8 ? upload_->UploadBytes(part.data, to) : upload_->Upload(part, reinterpret_cast<Bf16*>(to));
    to += part.num_elements() * static_cast<int64_t>(element_bytes);
  }
  return memory;
}

absl::StatusOr<DeviceMemory> CudaWeights::UploadTable(const void* data, size_t bytes) {
  ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes));
  CheckCuda(cudaMemcpyAsync(memory.as<void>(), data, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
  CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  return memory;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaWeights::FewBitLinear(absl::Span<const TensorView> parts,
                                                                        WeightKind kind, int64_t out,
                                                                        DeviceMemory bias) {
  const int64_t in = parts[0].columns(), row_bytes = FewBitRowBytes(kind, in);
  ASSIGN_OR_RETURN(DeviceMemory codes, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, out * row_bytes));
  uint8_t* to = codes.as<uint8_t>();
  for (const TensorView& part : parts) {
    upload_->UploadRows(
        part.rows(), row_bytes, [&](int64_t row, uint8_t* packed) { PackFewBitRow(part, row, packed); }, to);
    to += part.rows() * row_bytes;
  }
  const FewBitScales table = FewBitScalesOf(parts);
  DeviceMemory scales;
  if (!table.scales.empty()) {
    ASSIGN_OR_RETURN(scales, UploadTable(table.scales.data(), table.scales.size() * sizeof(uint16_t)));
  }
  ASSIGN_OR_RETURN(DeviceMemory factors, UploadTable(table.factors.data(), table.factors.size() * sizeof(float)));
  few_bit_elements_ = std::max(few_bit_elements_, out * in);
  const FewBitWeight weight{.kind = kind,
                            .codes = codes.as<const uint8_t>(),
                            .scales = scales.as<const Bf16>(),
                            .scale_columns = table.scale_columns,
                            .group_bits = table.group_bits,
                            .factors = factors.as<const float>()};
  return std::unique_ptr<LinearWeight>(std::make_unique<CudaLinear>(
      out, in, weight, std::move(codes), std::move(scales), std::move(factors), std::move(bias)));
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CudaWeights::Linear(absl::Span<const TensorView> parts,
                                                                  absl::Span<const TensorView> biases) {
  int64_t out = 0;
  const int64_t in = parts[0].columns();
  for (const TensorView& part : parts) {
    if (part.columns() != in) {
      return absl::InvalidArgumentError(
          absl::StrCat(part.name, " has ", part.columns(), " columns, ", parts[0].name, " has ", in));
    }
    out += part.rows();
  }
  DeviceMemory bias;
  if (!biases.empty()) {
    ASSIGN_OR_RETURN(bias, Upload(biases));
  }
  if (const WeightKind kind = FewBitKindOf(parts, config_); kind != WeightKind::kBf16) {
    return FewBitLinear(parts, kind, out, std::move(bias));
  }
  if (compute_major_ == 9 && StayFloat8(parts, config_)) {
    ASSIGN_OR_RETURN(DeviceMemory codes, Upload(parts, /*is_float8=*/true));
    const std::vector<float> table = Float8Scales(parts);
    ASSIGN_OR_RETURN(DeviceMemory scales, UploadTable(table.data(), table.size() * sizeof(float)));
    float8_columns_ = std::max(float8_columns_, in);
    return std::unique_ptr<LinearWeight>(
        std::make_unique<CudaLinear>(out, in, std::move(codes), std::move(scales), std::move(bias)));
  }
  std::shared_ptr<DeviceMemory> weight;
  if (parts.size() == 1 && parts[0].data.data() == embedding_.data() && parts[0].data.size() == embedding_.size()) {
    weight = embedding_memory_.lock();
  }
  if (weight == nullptr) {
    ASSIGN_OR_RETURN(DeviceMemory uploaded, Upload(parts));
    weight = std::make_shared<DeviceMemory>(std::move(uploaded));
  }
  return std::unique_ptr<LinearWeight>(std::make_unique<CudaLinear>(out, in, std::move(weight), std::move(bias)));
}

absl::StatusOr<std::unique_ptr<VectorWeight>> CudaWeights::Vector(const TensorView& tensor) {
  ASSIGN_OR_RETURN(DeviceMemory memory, Upload({&tensor, 1}));
  return std::unique_ptr<VectorWeight>(std::make_unique<CudaVector>(std::move(memory)));
}

absl::StatusOr<std::unique_ptr<EmbeddingTable>> CudaWeights::Embedding(const TensorView& tensor) {
  ASSIGN_OR_RETURN(DeviceMemory memory, Upload({&tensor, 1}));
  auto shared = std::make_shared<DeviceMemory>(std::move(memory));
  embedding_ = tensor.data;
  embedding_memory_ = shared;
  return std::unique_ptr<EmbeddingTable>(std::make_unique<CudaEmbedding>(std::move(shared)));
}

}  // namespace tandem
