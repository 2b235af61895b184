#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// Whether matrices that are stacked to one stay in FP8 on a device that computes with it: E4M3 codes whose scales are
// those of whole blocks of 128 x 128, of a layer without bias and with bf16 output, in a model without experts, whose
// kernels are for bf16.
bool StayFloat8(absl::Span<const TensorView> parts, const ModelConfig& config);
// The scales of such matrices, one below the other, as Float8Weight has them.
std::vector<float> Float8Scales(absl::Span<const TensorView> parts);

}  // namespace tandem
