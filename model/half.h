#pragma once

#include <cstdint>

namespace tandem {

// Short floating point numbers, by bits: not every compiler has types for them. Inline and free of other
// headers, since the kernel builds include it.

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  // Moves exponent and mantissa into place, then corrects the bias by a multiplication, which also
  // normalises subnormal numbers.
  float value = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if (magnitude >= 0x7C00) bits |= 0x7F800000u;  // Infinity and NaN.
  return __builtin_bit_cast(float, bits | sign);
}

// Of two bytes, the low one first.
inline float LoadHalf(const uint8_t* bytes) { return HalfToFloat(static_cast<uint16_t>(bytes[0] | bytes[1] << 8)); }

// Rounds to the nearest, ties to even.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;   // NaN.
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // Rounds to infinity.
  if (magnitude < 0x38800000) {                       // Subnormal: the addition rounds.
    float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

// Rounds to the nearest, ties to even; NaN stays NaN.
inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// FP8 (OCP E4M3): no infinity, the largest value is 448.
inline float Float8ToFloat(uint8_t code) {
  const uint32_t magnitude = code & 0x7F;
  const float value = magnitude == 0x7F ? __builtin_nanf("") : __builtin_bit_cast(float, magnitude << 20) * 0x1p120f;
  return code & 0x80 ? -value : value;
}

// Rounds to the nearest, ties to even; what is too large becomes the largest, NaN stays NaN.
inline uint8_t FloatToFloat8(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7F;
  if (magnitude >= 0x43E00000) return sign | 0x7E;
  if (magnitude < 0x3C800000) {  // Subnormal: the addition rounds.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - __builtin_bit_cast(uint32_t, 0x1p14f)));
  }
  const uint32_t odd = (magnitude >> 20) & 1;
  return static_cast<uint8_t>(sign | ((magnitude - 0x3C000000 + 0x7FFFF + odd) >> 20));
}

inline float BFloat16ToFloat(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

}  // namespace tandem
