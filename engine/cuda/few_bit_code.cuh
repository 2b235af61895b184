#pragma once

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/few_bit_kernels.h"

// Codes of few bits as bf16, in registers.

namespace tandem {

__device__ __forceinline__ uint32_t MultiplyPair(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// The codes at nibble `nibble` and 4 behind it, times the two `scales`.
template <WeightKind kKind>
__device__ __forceinline__ uint32_t WidenNibbles(uint32_t word, int nibble, uint32_t scales) {
  const uint32_t codes = word >> (4 * nibble);
  if constexpr (kKind == WeightKind::kInt4) {
    // 128 + code, whose bits are the last ones of the mantissa; and 136 less.
    constexpr uint32_t k128 = 0x43004300, k136 = 0x43084308;
    uint32_t value;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"((codes & 0x000f000f) | k128), "r"(k136));
    return MultiplyPair(value, scales);
  } else {
    // The bits of exponent and mantissa in place: 2^126 too small, subnormal ones too, which the scales make up for.
    return MultiplyPair((codes & 0x00070007) << 6 | (codes & 0x00080008) << 12, scales);
  }
}

// The signed bytes 2 * `pair` and the next one of a word.
__device__ __forceinline__ uint32_t WidenBytes(uint32_t word, int pair) {
  // 2^23 + 128 + code, whose bits are the last ones of the mantissa.
  constexpr uint32_t k2To23 = 0x4b000000;
  constexpr float kLess = 8388608.0f + 128.0f;
  const uint32_t moved = word ^ 0x80808080;
  const float first = __uint_as_float(__byte_perm(moved, k2To23, pair == 0 ? 0x7650 : 0x7652)) - kLess;
  const float second = __uint_as_float(__byte_perm(moved, k2To23, pair == 0 ? 0x7651 : 0x7653)) - kLess;
  return PackPair(first, second);
}

// One scale of two, twice.
__device__ __forceinline__ uint32_t Twice(uint32_t scales, int which) {
  return __byte_perm(scales, 0, which == 0 ? 0x1010 : 0x3232);
}

}  // namespace tandem
