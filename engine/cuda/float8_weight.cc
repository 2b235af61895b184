#include "engine/cuda/float8_weight.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "engine/cuda/float8_kernels.h"

namespace tandem {

namespace {

bool IsOfWholeBlocks(const TensorView& tensor) {
  const BlockScales& scales = tensor.scales;
  if (tensor.dtype != DType::kF8E4M3 || tensor.shape.size() != 2 || scales.empty()) return false;
  const auto is_whole = [](int64_t size, int64_t first, int64_t block) {
    return size % kFloat8Block == 0 && first % kFloat8Block == 0 && block % kFloat8Block == 0;
  };
  return is_whole(tensor.rows(), scales.first_row, scales.block_rows) &&
         is_whole(tensor.columns(), scales.first_column, scales.block_columns);
}

}  // namespace

bool StayFloat8(absl::Span<const TensorView> parts, const ModelConfig& config) {
  if (config.moe.num_experts > 0 || config.qkv_bias || absl::StartsWith(parts[0].name, "lm_head")) return false;
  return std::all_of(parts.begin(), parts.end(), IsOfWholeBlocks);
}

std::vector<float> Float8Scales(absl::Span<const TensorView> parts) {
  const int stride = Float8ScaleStride(parts[0].columns());
  std::vector<float> scales;
  for (const TensorView& part : parts) {
    for (int64_t row = 0; row < part.rows(); row += kFloat8Block) {
      const size_t begin = scales.size();
      scales.resize(begin + stride, 0.0f);
      for (int64_t column = 0; column < part.columns(); column += kFloat8Block) {
        scales[begin + column / kFloat8Block] = part.scales.At(row, column);
      }
    }
  }
  return scales;
}

}  // namespace tandem
