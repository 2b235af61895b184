#pragma once

#include <array>
#include <cstdint>

#include "model/tensor.h"

namespace tandem {

// Some neighbouring weights of a block-quantised row, as what all of ggml's formats are:
// weight = scale * (code - zero) + minimum, with one scale and minimum for the group and unsigned codes.
struct QuantGroup {
  float scale = 0;
  int zero = 0;
  float minimum = 0;
  std::array<uint8_t, 32> codes{};
};

// Weights in a group of this type: 32, or 16; 0 for types that are not block-quantised.
int QuantGroupColumns(DType dtype);

// Reads groups [0, columns / QuantGroupColumns) of a row of a block-quantised tensor. Here alone stands how the blocks
// lie in a file (source: ggml's format, checked against the `gguf` library).
//
// Thread-safety: immutable.
// Ownership: borrows the tensor's data.
class QuantRowReader {
 public:
  QuantRowReader(const TensorView& tensor, int64_t row);
  QuantGroup Read(int64_t group) const;

 private:
  const DType dtype_;
  const BlockShape block_;
  const int groups_per_block_;
  const uint8_t* const blocks_;
};

}  // namespace tandem
