#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/half.h"

namespace tandem {

// How the elements of a stored tensor are encoded.
enum class DType {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF4E2M1,  // Two to a byte, the lower bits first.
  kI4,      // Likewise, each 8 more than its value.
  kU8,
  kI8,
  kI32,
  kI64,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K
};

absl::string_view DTypeName(DType dtype);

// Elements per block (1 for plain types) and bytes per block.
struct BlockShape {
  int elements;
  int bytes;
};
BlockShape DTypeBlock(DType dtype);

// What the values of a matrix are to be multiplied with: a factor for each block of rows and columns.
//
// Ownership: borrows `data` from the mapped file.
struct BlockScales {
  DType dtype = DType::kF32;       // F32, F16, BF16 or F8_E4M3.
  absl::Span<const uint8_t> data;  // A table, row by row; empty: all factors are 1.
  int64_t table_columns = 1;
  int64_t block_rows = 1, block_columns = 1;
  int64_t first_row = 0, first_column = 0;  // Where the matrix begins in the one that was stored.
  float factor = 1;                         // Of all.

  bool empty() const { return data.empty(); }
  float At(int64_t row, int64_t column) const;
};

// A tensor as it lies in a checkpoint.
//
// Ownership: borrows `data` from the mapped file.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // Row-major, outermost first: a linear layer is [out, in].
  absl::Span<const uint8_t> data;
  BlockScales scales;

  int64_t num_elements() const;
  int64_t rows() const { return shape.size() < 2 ? 1 : num_elements() / shape.back(); }
  int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
};

// Bytes of a tensor of this type and shape. INVALID_ARGUMENT when a dimension is not positive, the
// product overflows or the last dimension is no multiple of the block.
absl::StatusOr<int64_t> TensorBytes(DType dtype, absl::Span<const int64_t> shape);

// Decodes `count` elements starting at the beginning of row `row` of `tensor` seen as [rows,
// columns]. `count` is at most a row and a multiple of the block. Formats: ggml's block
// quantisation, as gguf-py's dequantize to the last bit but for the sign of zeros; OCP's FP8 and FP4. CHECK-fails for
// integer types that weights do not have.
void DequantizeRow(const TensorView& tensor, int64_t row, int64_t count, float* out);

}  // namespace tandem
