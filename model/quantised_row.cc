#include "model/quantised_row.h"

#include "model/half.h"

namespace tandem {
namespace {

// 32 codes of 4 bits: low nibbles are elements 0-15, high ones 16-31.
void ReadNibbles(const uint8_t* q, QuantGroup& group) {
  for (int i = 0; i < 16; ++i) {
    group.codes[i] = q[i] & 15;
    group.codes[i + 16] = q[i] >> 4;
  }
}

// The fifth bits of 32 elements; element i's is bit i.
void AddFifthBits(const uint8_t* bits, QuantGroup& group) {
  for (int i = 0; i < 32; ++i) group.codes[i] |= ((bits[i / 8] >> (i % 8)) & 1) << 4;
}

// {half d; u8 q[16]}.
void ReadQ4_0(const uint8_t* block, QuantGroup& group) {
  group.scale = LoadHalf(block);
  group.zero = 8;
  ReadNibbles(block + 2, group);
}

// {half d; half m; u8 q[16]}.
void ReadQ4_1(const uint8_t* block, QuantGroup& group) {
  group.scale = LoadHalf(block);
  group.minimum = LoadHalf(block + 2);
  ReadNibbles(block + 4, group);
}

// {half d; u8 high[4]; u8 q[16]}.
void ReadQ5_0(const uint8_t* block, QuantGroup& group) {
  group.scale = LoadHalf(block);
  group.zero = 16;
  ReadNibbles(block + 6, group);
  AddFifthBits(block + 2, group);
}

// {half d; half m; u8 high[4]; u8 q[16]}.
void ReadQ5_1(const uint8_t* block, QuantGroup& group) {
  group.scale = LoadHalf(block);
  group.minimum = LoadHalf(block + 2);
  ReadNibbles(block + 8, group);
  AddFifthBits(block + 4, group);
}

// {half d; i8 q[32]}.
void ReadQ8_0(const uint8_t* block, QuantGroup& group) {
  group.scale = LoadHalf(block);
  group.zero = 128;
  for (int i = 0; i < 32; ++i) group.codes[i] = block[2 + i] ^ 0x80;  // int8 plus 128.
}

// Group j of Q4_K and Q5_K, which begin {half d; half dmin; u8 packed[12]}, with six-bit scales and minima; the groups
// of a pair share 32 bytes of `q`, low nibbles first.
void ReadQ45_K(const uint8_t* block, const uint8_t* q, int j, QuantGroup& group) {
  const uint8_t* packed = block + 4;
  const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4);
  const int minimum = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
  group.scale = LoadHalf(block) * static_cast<float>(scale);
  group.minimum = -LoadHalf(block + 2) * static_cast<float>(minimum);
  for (int i = 0; i < 32; ++i) group.codes[i] = j % 2 == 0 ? q[j / 2 * 32 + i] & 15 : q[j / 2 * 32 + i] >> 4;
}

// {..., u8 q[128]}.
void ReadQ4_K(const uint8_t* block, int j, QuantGroup& group) { ReadQ45_K(block, block + 16, j, group); }

// {..., u8 high[32]; u8 q[128]}: bit j of high[i] is element i's of group j.
void ReadQ5_K(const uint8_t* block, int j, QuantGroup& group) {
  ReadQ45_K(block, block + 48, j, group);
  for (int i = 0; i < 32; ++i) group.codes[i] |= ((block[16 + i] >> j) & 1) << 4;
}

// {u8 low[128]; u8 high[64]; i8 scales[16]; half d}: two halves of 128 elements, 8 groups of 16 each.
void ReadQ6_K(const uint8_t* block, int j, QuantGroup& group) {
  const uint8_t* low = block + j / 8 * 64;
  const uint8_t* high = block + 128 + j / 8 * 32;
  group.scale = LoadHalf(block + 208) * static_cast<float>(static_cast<int8_t>(block[192 + j]));
  group.zero = 32;
  for (int k = 0; k < 16; ++k) {
    const int i = j % 8 * 16 + k;
    const int nibble = i < 64 ? low[i] & 15 : low[i - 64] >> 4;
    group.codes[k] = static_cast<uint8_t>(nibble | (((high[i % 32] >> (2 * (i / 32))) & 3) << 4));
  }
}

}  // namespace

int QuantGroupColumns(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ8_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return 32;
    case DType::kQ6_K:
      return 16;
    default:
      return 0;
  }
}

QuantRowReader::QuantRowReader(const TensorView& tensor, int64_t row)
    : dtype_(tensor.dtype),
      block_(DTypeBlock(tensor.dtype)),
      groups_per_block_(block_.elements / QuantGroupColumns(tensor.dtype)),
      blocks_(tensor.data.data() + row * (tensor.columns() / block_.elements) * block_.bytes) {}

QuantGroup QuantRowReader::Read(int64_t index) const {
  QuantGroup group;
  const uint8_t* block = blocks_ + index / groups_per_block_ * block_.bytes;
  const int j = static_cast<int>(index % groups_per_block_);
  switch (dtype_) {
    case DType::kQ4_0:
      ReadQ4_0(block, group);
      break;
    case DType::kQ4_1:
      ReadQ4_1(block, group);
      break;
    case DType::kQ5_0:
      ReadQ5_0(block, group);
      break;
    case DType::kQ5_1:
      ReadQ5_1(block, group);
      break;
    case DType::kQ8_0:
      ReadQ8_0(block, group);
      break;
    case DType::kQ4_K:
      ReadQ4_K(block, j, group);
      break;
    case DType::kQ5_K:
      ReadQ5_K(block, j, group);
      break;
    case DType::kQ6_K:
      ReadQ6_K(block, j, group);
      break;
    default:
      break;
  }
  return group;
}

}  // namespace tandem
