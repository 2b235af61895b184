#include "engine/cuda/few_bit_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/match.h"

namespace tandem {
namespace {

constexpr float kFloat4Scale = 0x1p117f, kFloat4Factor = 0x1p9f;

WeightKind KindOf(DType dtype) {
  return dtype == DType::kI8       ? WeightKind::kInt8
         : dtype == DType::kI4     ? WeightKind::kInt4
         : dtype == DType::kF4E2M1 ? WeightKind::kFloat4
                                   : WeightKind::kBf16;
}

// Of a number that bf16 can hold.
uint16_t Bf16Bits(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }

// Whether each row, or a rank's part of it, lies in one block.
bool HasOneScale(const TensorView& tensor) {
  const int64_t block = tensor.scales.block_columns, first = tensor.scales.first_column;
  return first / block == (first + tensor.columns() - 1) / block;
}

// Features of a row that share a scale.
int64_t GroupOf(const TensorView& tensor) {
  return HasOneScale(tensor) ? tensor.columns() : tensor.scales.block_columns;
}

bool Stays(const TensorView& tensor, WeightKind kind) {
  const BlockScales& scales = tensor.scales;
  if (kind == WeightKind::kBf16 || KindOf(tensor.dtype) != kind || tensor.shape.size() != 2 || scales.empty())
    return false;
  const int64_t columns = tensor.columns(), group = GroupOf(tensor);
  if (columns % StepFeatures(kind) != 0) return false;
  // In f32, where a row's own scale is not rounded.
  if (kind == WeightKind::kInt8) return HasOneScale(tensor);
  if (!HasOneScale(tensor) && (columns % group != 0 || scales.first_column % group != 0)) return false;
  const bool is_exact = scales.dtype == DType::kF8E4M3 || (kind == WeightKind::kInt4 && scales.dtype == DType::kBF16);
  if (kind == WeightKind::kFloat4) return is_exact && group == 16;
  return is_exact && (HasOneScale(tensor) || (group % 32 == 0 && std::has_single_bit(static_cast<uint64_t>(group))));
}

// Where the code of feature 16 m + 4 q + i of a step stands, as FewBitWeight says.
struct Place {
  int byte, shift;
};
Place NibblePlace(int feature) {
  const int m = feature / 16, quad = feature % 16 / 4, i = feature % 4;
  const int nibble = m % 2 * 2 + i / 2 + i % 2 * 4;
  return {quad * 16 + m / 2 * 4 + nibble / 2, nibble % 2 * 4};
}

}  // namespace

WeightKind FewBitKindOf(absl::Span<const TensorView> parts, const ModelConfig& config) {
  if (config.moe.num_experts > 0 || absl::StartsWith(parts[0].name, "lm_head")) return WeightKind::kBf16;
  const WeightKind kind = KindOf(parts[0].dtype);
  const bool stay = std::all_of(parts.begin(), parts.end(), [&](const TensorView& part) {
    return Stays(part, kind) && part.columns() == parts[0].columns() && GroupOf(part) == GroupOf(parts[0]);
  });
  return stay ? kind : WeightKind::kBf16;
}

int64_t FewBitRowBytes(WeightKind kind, int64_t columns) { return columns / StepFeatures(kind) * 64; }

void PackFewBitRow(const TensorView& tensor, int64_t row, uint8_t* out) {
  const WeightKind kind = KindOf(tensor.dtype);
  const int64_t columns = tensor.columns(), row_bytes = FewBitRowBytes(kind, columns);
  const uint8_t* from = tensor.data.data() + row * row_bytes;
  if (kind == WeightKind::kInt8) {
    for (int64_t step = 0; step < columns; step += 64) {
      for (int m = 0; m < 4; ++m) {
        for (int quad = 0; quad < 4; ++quad)
          std::memcpy(out + step + quad * 16 + m * 4, from + step + m * 16 + quad * 4, 4);
      }
    }
    return;
  }
  std::memset(out, 0, row_bytes);
  for (int64_t step = 0; step < row_bytes; step += 64) {
    for (int feature = 0; feature < 128; ++feature) {
      const int code = from[step + feature / 2] >> (feature % 2 * 4) & 0xf;
      const Place place = NibblePlace(feature);
      out[step + place.byte] |= static_cast<uint8_t>(code << place.shift);
    }
  }
}

FewBitScales FewBitScalesOf(absl::Span<const TensorView> parts) {
  const WeightKind kind = KindOf(parts[0].dtype);
  const int64_t columns = parts[0].columns(), group = GroupOf(parts[0]);
  const bool is_float4 = kind == WeightKind::kFloat4;
  FewBitScales out;
  if (kind != WeightKind::kInt8) {
    out.scale_columns = static_cast<int>(columns / group);
    out.group_bits = group == columns ? 31 : std::countr_zero(static_cast<uint64_t>(group));
  }
  for (const TensorView& part : parts) {
    const float factor = part.scales.factor;
    BlockScales own = part.scales;
    own.factor = 1;
    for (int64_t row = 0; row < part.rows(); ++row) {
      if (kind == WeightKind::kInt8) {
        out.factors.push_back(own.At(row, 0) * factor);
        continue;
      }
      out.factors.push_back(is_float4 ? factor * kFloat4Factor : factor);
      for (int64_t column = 0; column < columns; column += group) {
        const float scale = own.At(row, column);
        out.scales.push_back(Bf16Bits(is_float4 ? scale * kFloat4Scale : scale));
      }
    }
  }
  return out;
}

}  // namespace tandem
