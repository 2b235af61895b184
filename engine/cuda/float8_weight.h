#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// Whether a matrix stays in FP8 on the device: one of E4M3 codes whose scales are those of whole blocks of 128 x 128,
// in a model without experts, whose kernels are for bf16.
bool StaysFloat8(const TensorView& tensor, const ModelConfig& config);
// The scales of such matrices, one below the other, as Float8Weight has them.
std::vector<float> Float8Scales(absl::Span<const TensorView> parts);

}  // namespace tandem
