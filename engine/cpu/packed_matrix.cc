#include "engine/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"

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

// The unsigned codes of group `group` of a block, in the order of columns; formats as
// model/tensor.cc decodes them.
void GroupCodes(DType dtype, const uint8_t* block, int group, uint8_t* codes) {
  auto nibbles = [&](const uint8_t* q, const uint8_t* fifth_bits) {
    for (int i = 0; i < 16; ++i) {
      codes[i] = q[i] & 15;
      codes[i + 16] = q[i] >> 4;
    }
    if (fifth_bits == nullptr) return;
    for (int i = 0; i < 32; ++i) codes[i] |= ((fifth_bits[i / 8] >> (i % 8)) & 1) << 4;
  };
  switch (dtype) {
    case DType::kQ4_0:
      return nibbles(block + 2, nullptr);
    case DType::kQ4_1:
      return nibbles(block + 4, nullptr);
    case DType::kQ5_0:
      return nibbles(block + 6, block + 2);
    case DType::kQ5_1:
      return nibbles(block + 8, block + 4);
    case DType::kQ8_0:
      for (int i = 0; i < 32; ++i) codes[i] = block[2 + i] ^ 0x80;  // int8 plus 128.
      return;
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const uint8_t* q = block + (dtype == DType::kQ4_K ? 16 : 48) + group / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        codes[i] = group % 2 == 0 ? q[i] & 15 : q[i] >> 4;
        if (dtype == DType::kQ5_K) codes[i] |= ((block[16 + i] >> group) & 1) << 4;
      }
      return;
    }
    case DType::kQ6_K: {
      const uint8_t* low = block + group / 8 * 64;
      const uint8_t* high = block + 128 + group / 8 * 32;
      for (int k = 0; k < 16; ++k) {
        int i = group % 8 * 16 + k;
        int nibble = i < 64 ? low[i] & 15 : low[i - 64] >> 4;
        codes[k] = static_cast<uint8_t>(nibble | (((high[i % 32] >> (2 * (i / 32))) & 3) << 4));
      }
      return;
    }
    default:
      return;
  }
}

float LoadHalfAt(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  return HalfToFloat(half);
}

// Scale and minimum of group `group` of a block, as weight = scale * code + minimum with codes from
// 0.
void GroupScale(DType dtype, const uint8_t* block, int group, float* scale, float* minimum) {
  float d = LoadHalfAt(block);
  switch (dtype) {
    case DType::kQ4_0:
      *scale = d;
      *minimum = -8 * d;
      return;
    case DType::kQ5_0:
      *scale = d;
      *minimum = -16 * d;
      return;
    case DType::kQ8_0:
      *scale = d;
      *minimum = -128 * d;
      return;
    case DType::kQ4_1:
    case DType::kQ5_1:
      *scale = d;
      *minimum = LoadHalfAt(block + 2);
      return;
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const uint8_t* packed = block + 4;
      int s = group < 4 ? packed[group] & 63 : (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4);
      int m = group < 4 ? packed[group + 4] & 63 : (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4);
      *scale = d * static_cast<float>(s);
      *minimum = -LoadHalfAt(block + 2) * static_cast<float>(m);
      return;
    }
    case DType::kQ6_K:
      *scale = LoadHalfAt(block + 208) * static_cast<float>(static_cast<int8_t>(block[192 + group]));
      *minimum = -32 * *scale;
      return;
    default:
      *scale = *minimum = 0;
  }
}

void CodeRow(const TensorView& tensor, int64_t row, int group_columns, CodedRow& out) {
  const int64_t columns = tensor.columns();
  BlockShape block = DTypeBlock(tensor.dtype);
  out.codes.resize(columns);
  out.scales.resize(columns / group_columns);
  out.minima.resize(columns / group_columns);
  const uint8_t* blocks = tensor.data.data() + row * (columns / block.elements) * block.bytes;
  for (int64_t group = 0; group < columns / group_columns; ++group) {
    const int64_t begin = group * group_columns;
    const uint8_t* at = blocks + begin / block.elements * block.bytes;
    const int in_block = static_cast<int>(begin % block.elements / group_columns);
    GroupScale(tensor.dtype, at, in_block, &out.scales[group], &out.minima[group]);
    GroupCodes(tensor.dtype, at, in_block, out.codes.data() + begin);
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
  if (encoding != PackedEncoding::kF32) {
    const uint8_t* source = tensor.data.data() + source_row * columns * 2;
    for (int64_t column = 0; column < columns; ++column) {
      std::memcpy(panel + (column * kPanelRows + row) * 2, source + column * 2, 2);
    }
    return;
  }
  decoded.resize(columns);
  DequantizeRow(tensor, source_row, columns, decoded.data());
  for (int64_t column = 0; column < columns; ++column) {
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
