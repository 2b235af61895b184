#include "engine/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "model/quantised_row.h"

namespace tandem {
namespace {

struct Layout {
  PackedEncoding encoding;
  int group_columns = 32;
  bool wide_scales = false;
  bool operator==(const Layout&) const = default;
};

Layout LayoutOf(DType dtype, Precision precision) {
  bool full = precision == Precision::kFull;
  switch (dtype) {
    case DType::kQ4_0:
    case DType::kQ4_1:
      if (!full) return {PackedEncoding::kU4};
      break;
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ8_0:
      if (!full) return {PackedEncoding::kU8};
      break;
    case DType::kQ4_K:
      if (!full) return {PackedEncoding::kU4, 32, true};
      break;
    case DType::kQ5_K:
      if (!full) return {PackedEncoding::kU8, 32, true};
      break;
    case DType::kQ6_K:
      if (!full) return {PackedEncoding::kU8, 16, true};
      break;
    case DType::kF16:
      return {PackedEncoding::kF16};
    case DType::kBF16:
      return {PackedEncoding::kBF16};
    case DType::kF8E4M3:
    case DType::kF4E2M1:
    case DType::kI8:
    case DType::kI4:
      if (!full) return {PackedEncoding::kBF16};
      break;
    default:
      break;
  }
  return {PackedEncoding::kF32};
}

// Integer codes of one row with each group's scale and minimum.
struct CodedRow {
  std::vector<uint8_t> codes;
  std::vector<float> scales, minima;
};

void CodeRow(const TensorView& tensor, int64_t row, int group_columns, CodedRow& out) {
  const QuantRowReader reader(tensor, row);
  const int64_t groups = tensor.columns() / group_columns;
  out.codes.resize(tensor.columns());
  out.scales.resize(groups);
  out.minima.resize(groups);
  for (int64_t i = 0; i < groups; ++i) {
    const QuantGroup group = reader.Read(i);
    out.scales[i] = group.scale;
    out.minima[i] = group.minimum - static_cast<float>(group.zero) * group.scale;
    std::copy_n(group.codes.begin(), group_columns, out.codes.begin() + i * group_columns);
  }
}

void StoreScale(uint8_t* at, int row, float value, bool wide) {
  if (wide) {
    std::memcpy(at + row * 4, &value, 4);
  } else {
    uint16_t half = FloatToHalf(value);
    std::memcpy(at + row * 2, &half, 2);
  }
}

int64_t GroupBytes(const Layout& layout) {
  int64_t header = 2 * kPanelRows * (layout.wide_scales ? 4 : 2);
  int64_t codes = int64_t{kPanelRows} * layout.group_columns;
  return header + (layout.encoding == PackedEncoding::kU4 ? codes / 2 : codes);
}

int64_t PanelBytes(const Layout& layout, int64_t columns) {
  switch (layout.encoding) {
    case PackedEncoding::kU4:
    case PackedEncoding::kU8:
      return columns / layout.group_columns * GroupBytes(layout);
    case PackedEncoding::kF32:
      return columns * kPanelRows * 4;
    case PackedEncoding::kF16:
    case PackedEncoding::kBF16:
      return columns * kPanelRows * 2;
  }
  return 0;
}

void StoreCodedRow(const CodedRow& coded, const Layout& layout, int row, uint8_t* panel) {
  int64_t group_bytes = GroupBytes(layout);
  int scale_bytes = kPanelRows * (layout.wide_scales ? 4 : 2);
  for (size_t group = 0; group < coded.scales.size(); ++group) {
    uint8_t* at = panel + group * group_bytes;
    StoreScale(at, row, coded.scales[group], layout.wide_scales);
    StoreScale(at + scale_bytes, row, coded.minima[group], layout.wide_scales);
    uint8_t* codes = at + 2 * scale_bytes;
    for (int column = 0; column < layout.group_columns; ++column) {
      uint8_t code = coded.codes[group * layout.group_columns + column];
      int quad = column / 4, byte = column % 4;
      if (layout.encoding == PackedEncoding::kU8) {
        codes[(quad * kPanelRows + row) * 4 + byte] = code;
      } else {
        codes[((quad / 2) * kPanelRows + row) * 4 + byte] |= quad % 2 == 0 ? code : code << 4;
      }
    }
  }
}

void StoreFloatRow(const TensorView& tensor, int64_t source_row, PackedEncoding encoding, int row,
                   std::vector<float>& decoded, uint8_t* panel) {
  const int64_t columns = tensor.columns();
  if (encoding != PackedEncoding::kF32 && tensor.scales.empty()) {
    const uint8_t* source = tensor.data.data() + source_row * columns * 2;
    for (int64_t column = 0; column < columns; ++column) {
      std::memcpy(panel + (column * kPanelRows + row) * 2, source + column * 2, 2);
    }
    return;
  }
  decoded.resize(columns);
  DequantizeRow(tensor, source_row, columns, decoded.data());
  for (int64_t column = 0; column < columns; ++column) {
    if (encoding == PackedEncoding::kBF16) {
      const uint16_t rounded = FloatToBFloat16(decoded[column]);
      std::memcpy(panel + (column * kPanelRows + row) * 2, &rounded, 2);
      continue;
    }
    std::memcpy(panel + (column * kPanelRows + row) * 4, &decoded[column], 4);
  }
}

}  // namespace

int64_t PackedBytes(const TensorView& weights, Precision precision) {
  const int64_t panels = (weights.rows() + kPanelRows - 1) / kPanelRows;
  return panels * PanelBytes(LayoutOf(weights.dtype, precision), weights.columns());
}

absl::StatusOr<std::unique_ptr<PackedLinear>> PackedLinear::Pack(absl::Span<const TensorView> parts,
                                                                 absl::Span<const TensorView> biases,
                                                                 Precision precision, InputPrecision input_precision) {
  int64_t out = 0;
  const int64_t in = parts[0].columns();
  for (const TensorView& part : parts) {
    if (part.columns() != in) {
      return absl::InvalidArgumentError(
          absl::StrCat(part.name, " has ", part.columns(), " columns, ", parts[0].name, " has ", in));
    }
    out += part.rows();
  }
  std::unique_ptr<PackedLinear> linear(new PackedLinear(out, in));
  for (size_t begin = 0, end; begin < parts.size(); begin = end) {
    const Layout layout = LayoutOf(parts[begin].dtype, precision);
    for (end = begin + 1; end < parts.size() && LayoutOf(parts[end].dtype, precision) == layout;) ++end;
    absl::Span<const TensorView> of_these = biases.empty() ? biases : biases.subspan(begin, end - begin);
    linear->matrices_.push_back(
        PackedMatrix::Pack(parts.subspan(begin, end - begin), of_these, precision, input_precision));
  }
  return linear;
}

std::unique_ptr<PackedMatrix> PackedMatrix::Pack(absl::Span<const TensorView> parts,
                                                 absl::Span<const TensorView> biases, Precision precision,
                                                 InputPrecision input_precision) {
  int64_t out = 0;
  const int64_t in = parts[0].columns();
  const Layout layout = LayoutOf(parts[0].dtype, precision);
  for (const TensorView& part : parts) out += part.rows();

  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix(out, in));
  matrix->encoding = layout.encoding;
  matrix->group_columns = layout.group_columns;
  matrix->wide_scales = layout.wide_scales;
  matrix->two_planes = matrix->is_quantised() && input_precision == InputPrecision::kSensitive;
  matrix->num_panels = (out + kPanelRows - 1) / kPanelRows;
  matrix->panel_bytes = PanelBytes(layout, in);
  constexpr size_t kAlignment = 64;
  matrix->storage_.resize(matrix->num_panels * matrix->panel_bytes + kAlignment);
  uintptr_t address = reinterpret_cast<uintptr_t>(matrix->storage_.data());
  uint8_t* base = matrix->storage_.data() + (kAlignment - address % kAlignment) % kAlignment;
  matrix->panels = base;

  int64_t row = 0;
  std::vector<float> decoded;
  CodedRow coded;
  for (const TensorView& part : parts) {
    for (int64_t source_row = 0; source_row < part.rows(); ++source_row, ++row) {
      uint8_t* panel = base + row / kPanelRows * matrix->panel_bytes;
      int panel_row = static_cast<int>(row % kPanelRows);
      if (matrix->is_quantised()) {
        CodeRow(part, source_row, layout.group_columns, coded);
        StoreCodedRow(coded, layout, panel_row, panel);
      } else {
        StoreFloatRow(part, source_row, layout.encoding, panel_row, decoded, panel);
      }
    }
  }
  if (!biases.empty()) {
    matrix->bias.assign(matrix->num_panels * kPanelRows, 0.0f);
    int64_t at = 0;
    for (const TensorView& bias : biases) {
      DequantizeRow(bias, 0, bias.columns(), matrix->bias.data() + at);
      at += bias.columns();
    }
  }
  return matrix;
}

}  // namespace tandem
