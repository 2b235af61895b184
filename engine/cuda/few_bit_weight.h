#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/cuda/few_bit_kernels.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// How matrices that are stacked to one stay in the device's memory: as kInt8, with a scale for each row or for all; as
// kInt4, with scales in bf16 or FP8 for each row or for groups of 32, 64, 128 .. features; as kFloat4, with scales in
// FP8 for groups of 16. A rank's share has no part of a group, unless it lies in one as a whole. Else as kBf16; so do
// all of a model with experts, whose kernels are for bf16, and a head.
WeightKind FewBitKindOf(absl::Span<const TensorView> parts, const ModelConfig& config);

// Bytes of a row's codes.
int64_t FewBitRowBytes(WeightKind kind, int64_t columns);
// A row as FewBitWeight has it, to `out` [FewBitRowBytes].
void PackFewBitRow(const TensorView& tensor, int64_t row, uint8_t* out);

// The scales and factors of such matrices, one below the other, as FewBitWeight has them.
struct FewBitScales {
  std::vector<uint16_t> scales;  // Bits of bf16.
  int scale_columns = 0, group_bits = 0;
  std::vector<float> factors;
};
FewBitScales FewBitScalesOf(absl::Span<const TensorView> parts);

}  // namespace tandem
