#pragma once

// For the kernel builds only: 16 floats as one value, in plain C++ that the compiler turns into one
// 512-bit or four 128-bit registers. Included by files that are compiled once per instruction set,
// so it must not pull in standard containers: an inline function of theirs compiled here for
// AVX-512 could be the copy that the linker keeps for everybody.

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "model/half.h"

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));

#define TANDEM_INLINE inline __attribute__((always_inline))

TANDEM_INLINE Vec LoadVec(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

TANDEM_INLINE void StoreVec(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

TANDEM_INLINE Vec Broadcast(float x) { return x - Vec{}; }

// a * b + c, fused where the hardware does it.
TANDEM_INLINE Vec MultiplyAdd(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

// 16 f16 values.
TANDEM_INLINE Vec LoadHalfVec(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
  Vec v;
  for (int i = 0; i < 16; ++i) {
    uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    v[i] = HalfToFloat(half);
  }
  return v;
#endif
}

// 16 bf16 values.
TANDEM_INLINE Vec LoadBFloatVec(const uint8_t* p) {
  typedef uint16_t ShortVec __attribute__((vector_size(32)));
  typedef uint32_t WordVec __attribute__((vector_size(64)));
  ShortVec bits;
  std::memcpy(&bits, p, sizeof(bits));
  WordVec words = __builtin_convertvector(bits, WordVec) << 16;
  return (Vec)words;
}

// 16 FP8 values (E4M3).
TANDEM_INLINE Vec LoadFloat8Vec(const uint8_t* p) {
#if defined(__AVX512F__)
  const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i nan = _mm256_set1_epi16(0x7F), magnitudes = _mm256_and_si256(codes, nan);
  // As f16, whose exponents are of another bias.
  const __m256i halves = _mm256_or_si256(_mm256_slli_epi16(magnitudes, 7),
                                         _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)), 8));
  const __m512 values = _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256));
  return (Vec)_mm512_mask_mov_ps(values, _mm256_cmpeq_epi16_mask(magnitudes, nan), _mm512_set1_ps(__builtin_nanf("")));
#else
  Vec v;
  for (int i = 0; i < 16; ++i) v[i] = Float8ToFloat(p[i]);
  return v;
#endif
}

TANDEM_INLINE void StoreHalfVec(uint8_t* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < 16; ++i) {
    uint16_t half = FloatToHalf(v[i]);
    std::memcpy(p + 2 * i, &half, 2);
  }
#endif
}

TANDEM_INLINE float Sum(Vec v) {
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
}

TANDEM_INLINE float Max(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float top = v[0];
  for (int i = 1; i < 16; ++i) top = v[i] > top ? v[i] : top;
  return top;
#endif
}

TANDEM_INLINE int32_t Sum(IntVec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
#endif
}

// To the nearest integer, halves to the even one, for |x| < 2^22.
TANDEM_INLINE IntVec Round(Vec x) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtps_epi32((__m512)x);
#else
  const Vec magic = Broadcast(12582912.0f);  // 1.5 * 2^23: no bits are left for a fraction.
  return __builtin_convertvector((x + magic) - magic, IntVec);
#endif
}

// 16 values in [-128, 127] as bytes.
TANDEM_INLINE void StoreBytes(int8_t* p, IntVec v) {
  typedef int8_t ByteVec __attribute__((vector_size(16)));
  ByteVec bytes = __builtin_convertvector(v, ByteVec);
  std::memcpy(p, &bytes, sizeof(bytes));
}

// e^x with a relative error under 2e-7 for x in [-87, 88]; x is clamped to that. After Cephes'
// expf.
TANDEM_INLINE Vec Exp(Vec x) {
  const Vec low = Broadcast(-87.3f), high = Broadcast(88.3f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  Vec scaled = x * 1.44269504088896341f;
  IntVec n = __builtin_convertvector(scaled + (scaled < 0.0f ? Broadcast(-0.5f) : Broadcast(0.5f)), IntVec);
  Vec whole = __builtin_convertvector(n, Vec);
  x = MultiplyAdd(whole, Broadcast(-0.693359375f), x);
  x = MultiplyAdd(whole, Broadcast(2.12194440e-4f), x);
  Vec y = Broadcast(1.9875691500e-4f);
  y = MultiplyAdd(y, x, Broadcast(1.3981999507e-3f));
  y = MultiplyAdd(y, x, Broadcast(8.3334519073e-3f));
  y = MultiplyAdd(y, x, Broadcast(4.1665795894e-2f));
  y = MultiplyAdd(y, x, Broadcast(1.6666665459e-1f));
  y = MultiplyAdd(y, x, Broadcast(5.0000001201e-1f));
  y = MultiplyAdd(y, x * x, x + 1.0f);
  IntVec power = (n + 127) << 23;
  return y * (Vec)power;
}

}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
