#include "model/tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/half.h"
#include "model/quantised_row.h"

namespace tandem {
namespace {

uint16_t LoadU16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Source: OCP Microscaling Formats 1.0, E2M1.
float DecodeF4E2M1(uint8_t bits) {
  constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return bits & 8 ? -kMagnitudes[bits & 7] : kMagnitudes[bits & 7];
}

uint8_t Nibble(const uint8_t* source, int64_t i) { return i % 2 == 0 ? source[i / 2] & 15 : source[i / 2] >> 4; }

void ScaleRow(const BlockScales& scales, int64_t row, int64_t count, float* out) {
  if (scales.empty()) return;
  for (int64_t i = 0, end; i < count; i = end) {
    end = std::min(count,
                   ((scales.first_column + i) / scales.block_columns + 1) * scales.block_columns - scales.first_column);
    const float scale = scales.At(row, i);
    for (int64_t k = i; k < end; ++k) out[k] *= scale;
  }
}

// The first `count` elements of a block-quantised row.
void DequantizeGroups(const TensorView& tensor, int64_t row, int64_t count, float* out) {
  const QuantRowReader reader(tensor, row);
  const int columns = QuantGroupColumns(tensor.dtype);
  for (int64_t i = 0; i < count; i += columns) {
    const QuantGroup group = reader.Read(i / columns);
    for (int k = 0; k < columns; ++k) {
      out[i + k] = group.scale * static_cast<float>(group.codes[k] - group.zero) + group.minimum;
    }
  }
}

}  // namespace

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kF4E2M1:
      return "F4_E2M1";
    case DType::kI4:
      return "I4";
    case DType::kU8:
      return "U8";
    case DType::kI8:
      return "I8";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kQ4_0:
      return "Q4_0";
    case DType::kQ4_1:
      return "Q4_1";
    case DType::kQ5_0:
      return "Q5_0";
    case DType::kQ5_1:
      return "Q5_1";
    case DType::kQ8_0:
      return "Q8_0";
    case DType::kQ4_K:
      return "Q4_K";
    case DType::kQ5_K:
      return "Q5_K";
    case DType::kQ6_K:
      return "Q6_K";
  }
  return "?";
}

BlockShape DTypeBlock(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return {1, 4};
    case DType::kF16:
    case DType::kBF16:
      return {1, 2};
    case DType::kF8E4M3:
    case DType::kU8:
    case DType::kI8:
      return {1, 1};
    case DType::kF4E2M1:
    case DType::kI4:
      return {2, 1};
    case DType::kI64:
      return {1, 8};
    case DType::kQ4_0:
      return {32, 18};
    case DType::kQ4_1:
      return {32, 20};
    case DType::kQ5_0:
      return {32, 22};
    case DType::kQ5_1:
      return {32, 24};
    case DType::kQ8_0:
      return {32, 34};
    case DType::kQ4_K:
      return {256, 144};
    case DType::kQ5_K:
      return {256, 176};
    case DType::kQ6_K:
      return {256, 210};
  }
  return {1, 1};
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int64_t dimension : shape) count *= dimension;
  return count;
}

absl::StatusOr<int64_t> TensorBytes(DType dtype, absl::Span<const int64_t> shape) {
  BlockShape block = DTypeBlock(dtype);
  int64_t elements = 1;
  for (int64_t dimension : shape) {
    if (dimension <= 0 || __builtin_mul_overflow(elements, dimension, &elements)) {
      return absl::InvalidArgumentError(absl::StrCat("impossible shape [", absl::StrJoin(shape, ", "), "]"));
    }
  }
  int64_t columns = shape.empty() ? 1 : shape.back();
  if (columns % block.elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("rows of ", columns, " elements are no multiple of the ",
                                                   block.elements, " of a ", DTypeName(dtype), " block"));
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / block.elements, static_cast<int64_t>(block.bytes), &bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("impossible shape [", absl::StrJoin(shape, ", "), "]"));
  }
  return bytes;
}

float BlockScales::At(int64_t row, int64_t column) const {
  const int64_t at = (first_row + row) / block_rows * table_columns + (first_column + column) / block_columns;
  switch (dtype) {
    case DType::kF16:
      return factor * LoadHalf(data.data() + 2 * at);
    case DType::kBF16:
      return factor * BFloat16ToFloat(LoadU16(data.data() + 2 * at));
    case DType::kF8E4M3:
      return factor * Float8ToFloat(data[at]);
    default: {
      float scale;
      std::memcpy(&scale, data.data() + 4 * at, sizeof(scale));
      return factor * scale;
    }
  }
}

void DequantizeRow(const TensorView& tensor, int64_t row, int64_t count, float* out) {
  BlockShape block = DTypeBlock(tensor.dtype);
  const uint8_t* source = tensor.data.data() + row * (tensor.columns() / block.elements) * block.bytes;
  if (QuantGroupColumns(tensor.dtype) > 0) return DequantizeGroups(tensor, row, count, out);
  switch (tensor.dtype) {
    case DType::kF32:
      std::memcpy(out, source, count * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = LoadHalf(source + 2 * i);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = BFloat16ToFloat(LoadU16(source + 2 * i));
      return;
    case DType::kF8E4M3:
      for (int64_t i = 0; i < count; ++i) out[i] = Float8ToFloat(source[i]);
      return ScaleRow(tensor.scales, row, count, out);
    case DType::kF4E2M1:
      for (int64_t i = 0; i < count; ++i) out[i] = DecodeF4E2M1(Nibble(source, i));
      return ScaleRow(tensor.scales, row, count, out);
    case DType::kI4:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(Nibble(source, i) - 8);
      return ScaleRow(tensor.scales, row, count, out);
    case DType::kI8:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(static_cast<int8_t>(source[i]));
      return ScaleRow(tensor.scales, row, count, out);
    default:
      std::abort();  // Callers check the type of every weight when a model is opened.
  }
}

}  // namespace tandem
