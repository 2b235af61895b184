#include "model/tensor.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem {
namespace {

uint16_t LoadU16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(LoadU16(p)); }

// x = (q - 8) * d; {half d; u8 q[16]}: low nibbles are elements 0-15, high ones 16-31.
void DecodeQ4_0(const uint8_t* block, float* out) {
  float d = LoadHalf(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((block[2 + i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((block[2 + i] >> 4) - 8) * d;
  }
}

// x = q * d + m; {half d; half m; u8 q[16]}.
void DecodeQ4_1(const uint8_t* block, float* out) {
  float d = LoadHalf(block), m = LoadHalf(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(block[4 + i] & 15) * d + m;
    out[i + 16] = static_cast<float>(block[4 + i] >> 4) * d + m;
  }
}

// The fifth bits of 32 elements, after the scales; element i's is bit i.
int FifthBit(const uint8_t* bits, int i) { return ((bits[i / 8] >> (i % 8)) & 1) << 4; }

// {half d; u8 high[4]; u8 q[16]}.
void DecodeQ5_0(const uint8_t* block, float* out) {
  float d = LoadHalf(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(((block[6 + i] & 15) | FifthBit(block + 2, i)) - 16) * d;
    out[i + 16] = static_cast<float>(((block[6 + i] >> 4) | FifthBit(block + 2, i + 16)) - 16) * d;
  }
}

// {half d; half m; u8 high[4]; u8 q[16]}.
void DecodeQ5_1(const uint8_t* block, float* out) {
  float d = LoadHalf(block), m = LoadHalf(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((block[8 + i] & 15) | FifthBit(block + 4, i)) * d + m;
    out[i + 16] = static_cast<float>((block[8 + i] >> 4) | FifthBit(block + 4, i + 16)) * d + m;
  }
}

// {half d; i8 q[32]}.
void DecodeQ8_0(const uint8_t* block, float* out) {
  float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
}

// Six-bit scale and minimum of sub-block j in the 12 packed bytes of Q4_K and Q5_K.
void UnpackScaleMin(const uint8_t* packed, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *minimum = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4);
    *minimum = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
  }
}

// {half d; half dmin; u8 scales[12]; u8 q[128]}: 64 elements share 32 bytes, low nibbles first.
void DecodeQ4_K(const uint8_t* block, float* out) {
  float d = LoadHalf(block), dmin = LoadHalf(block + 2);
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    UnpackScaleMin(block + 4, j, &scale, &minimum);
    float sub_scale = d * static_cast<float>(scale), sub_min = dmin * static_cast<float>(minimum);
    const uint8_t* q = block + 16 + (j / 2) * 32;
    for (int i = 0; i < 32; ++i) {
      int value = j % 2 == 0 ? q[i] & 15 : q[i] >> 4;
      out[j * 32 + i] = sub_scale * static_cast<float>(value) - sub_min;
    }
  }
}

// {half d; half dmin; u8 scales[12]; u8 high[32]; u8 q[128]}: bit j of high[i] is element 32 j +
// i's.
void DecodeQ5_K(const uint8_t* block, float* out) {
  float d = LoadHalf(block), dmin = LoadHalf(block + 2);
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    UnpackScaleMin(block + 4, j, &scale, &minimum);
    float sub_scale = d * static_cast<float>(scale), sub_min = dmin * static_cast<float>(minimum);
    const uint8_t* q = block + 48 + (j / 2) * 32;
    for (int i = 0; i < 32; ++i) {
      int value = (j % 2 == 0 ? q[i] & 15 : q[i] >> 4) | (((block[16 + i] >> j) & 1) << 4);
      out[j * 32 + i] = sub_scale * static_cast<float>(value) - sub_min;
    }
  }
}

// {u8 low[128]; u8 high[64]; i8 scales[16]; half d}: two halves of 128 elements.
void DecodeQ6_K(const uint8_t* block, float* out) {
  float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + half * 64;
    const uint8_t* high = block + 128 + half * 32;
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + half * 8;
    for (int i = 0; i < 128; ++i) {
      int nibble = i < 64 ? low[i] & 15 : low[i - 64] >> 4;
      int top = (high[i % 32] >> (2 * (i / 32))) & 3;
      int value = (nibble | (top << 4)) - 32;
      out[half * 128 + i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>(value);
    }
  }
}

float DecodeF8E4M3(uint8_t bits) {
  int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = (1.0f + static_cast<float>(mantissa) / 8.0f) * __builtin_ldexpf(1.0f, exponent - 7);
  }
  return bits & 128 ? -magnitude : magnitude;
}

using BlockDecoder = void (*)(const uint8_t*, float*);

// Null for types that are not block-quantised.
BlockDecoder DecoderOf(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return DecodeQ4_0;
    case DType::kQ4_1:
      return DecodeQ4_1;
    case DType::kQ5_0:
      return DecodeQ5_0;
    case DType::kQ5_1:
      return DecodeQ5_1;
    case DType::kQ8_0:
      return DecodeQ8_0;
    case DType::kQ4_K:
      return DecodeQ4_K;
    case DType::kQ5_K:
      return DecodeQ5_K;
    case DType::kQ6_K:
      return DecodeQ6_K;
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kF8E4M3:
    case DType::kU8:
    case DType::kI8:
    case DType::kI32:
    case DType::kI64:
      return nullptr;
  }
  return nullptr;
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

void DequantizeRow(const TensorView& tensor, int64_t row, int64_t count, float* out) {
  BlockShape block = DTypeBlock(tensor.dtype);
  const uint8_t* source = tensor.data.data() + row * (tensor.columns() / block.elements) * block.bytes;
  if (BlockDecoder decode = DecoderOf(tensor.dtype); decode != nullptr) {
    for (int64_t i = 0; i < count; i += block.elements, source += block.bytes) decode(source, out + i);
    return;
  }
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
      for (int64_t i = 0; i < count; ++i) out[i] = DecodeF8E4M3(source[i]);
      return;
    default:
      std::abort();  // Callers check the type of every weight when a model is opened.
  }
}

}  // namespace tandem
