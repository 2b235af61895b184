#include "engine/cpu/kernel_parts.h"
#include "engine/cpu/vector_math.h"
#if defined(__AMX_INT8__)
#include "engine/cpu/amx_tiles.h"
#endif

// Weights are read once per tile of rows; a tile's sums stay in registers. A row's arithmetic is
// the same sequence of operations whatever the tile's height, so its result does not depend on the
// batch.

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {
namespace {

constexpr int kTileRows = 8;
constexpr int64_t kPrefetchBytes = 2048;
constexpr float kLeastActivation = 1e-30f;  // Groups of smaller ones are zero: their inverse scale has no float.

TANDEM_INLINE void StoreResult(Vec value, const Vec& bias, int row, const PanelOutput& out) {
  value += bias;
  float* to = out.out + row * out.out_stride;
  if (out.num_outputs == kPanelRows) {
    StoreVec(to, out.add ? LoadVec(to) + value : value);
    return;
  }
  for (int i = 0; i < out.num_outputs; ++i) to[i] = out.add ? to[i] + value[i] : value[i];
}

Vec LoadBias(const PackedMatrix& weight, int64_t panel) {
  return weight.bias.empty() ? Vec{} : LoadVec(weight.bias.data() + panel * kPanelRows);
}

// Codes of one quad of columns: 16 rows x 4 bytes.
#if defined(__AVX512VNNI__)
using Codes = __m512i;
TANDEM_INLINE Codes LoadCodes(const uint8_t* p) { return _mm512_loadu_si512(p); }
TANDEM_INLINE Codes LowNibbles(Codes c) { return _mm512_and_si512(c, _mm512_set1_epi8(15)); }
TANDEM_INLINE Codes HighNibbles(Codes c) { return LowNibbles(_mm512_srli_epi16(c, 4)); }
// sum[row] += dot of the row's 4 codes and the 4 activations.
TANDEM_INLINE IntVec Dot(IntVec sum, Codes codes, const int8_t* activations) {
  int32_t quad;
  std::memcpy(&quad, activations, 4);
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, codes, _mm512_set1_epi32(quad));
}
#else
struct Codes {
  uint8_t bytes[64];
};
TANDEM_INLINE Codes LoadCodes(const uint8_t* p) {
  Codes codes;
  std::memcpy(codes.bytes, p, 64);
  return codes;
}
TANDEM_INLINE Codes LowNibbles(Codes c) {
  for (uint8_t& byte : c.bytes) byte &= 15;
  return c;
}
TANDEM_INLINE Codes HighNibbles(Codes c) {
  for (uint8_t& byte : c.bytes) byte >>= 4;
  return c;
}
// Not inlined: the unrolled loops around it would become one function of tens of thousands of instructions.
__attribute__((noinline)) IntVec Dot(IntVec sum, const Codes& codes, const int8_t* activations) {
  for (int row = 0; row < 16; ++row) {
    int32_t dot = 0;
    for (int i = 0; i < 4; ++i) dot += static_cast<int32_t>(codes.bytes[row * 4 + i]) * activations[i];
    sum[row] += dot;
  }
  return sum;
}
#endif

// Loads the `kQuads` quads of a group.
template <PackedEncoding kEncoding, int kQuads>
TANDEM_INLINE void LoadGroup(const uint8_t* codes, Codes (&out)[kQuads]) {
  if constexpr (kEncoding == PackedEncoding::kU4) {
    for (int i = 0; i < kQuads / 2; ++i) {
      Codes both = LoadCodes(codes + i * 64);
      out[2 * i] = LowNibbles(both);
      out[2 * i + 1] = HighNibbles(both);
    }
  } else {
    for (int i = 0; i < kQuads; ++i) out[i] = LoadCodes(codes + i * 64);
  }
}

template <bool kWide>
inline constexpr int kScaleBytes = kPanelRows*(kWide ? 4 : 2);
template <PackedEncoding kEncoding, int kGroup>
inline constexpr int kCodeBytes = kEncoding == PackedEncoding::kU4 ? kPanelRows* kGroup / 2 : kPanelRows* kGroup;

template <bool kWide>
TANDEM_INLINE Vec LoadScales(const uint8_t* p) {
  if constexpr (kWide) return LoadVec(reinterpret_cast<const float*>(p));
  return LoadHalfVec(p);
}

// Integer dots of a group's codes with kRows rows of activations, quad by quad for all rows: a row's additions wait for
// each other, so those of the others come between them. One row alone has two sums.
template <int kQuads, int kRows>
TANDEM_INLINE void GroupDots(const Codes (&codes)[kQuads], const int8_t* activations, int64_t stride,
                             IntVec (&dots)[kRows]) {
  constexpr int kSums = kRows == 1 ? 2 : 1;
  IntVec sums[kRows][kSums] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kQuads; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r][i % kSums] = Dot(sums[r][i % kSums], codes[i], activations + r * stride + 4 * i);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) dots[r] = kSums == 1 ? sums[r][0] : sums[r][0] + sums[r][kSums - 1];
}

template <PackedEncoding kEncoding, int kGroup, bool kWide, bool kTwoPlanes, int kRows>
void QuantisedTile(const uint8_t* panel, const QuantisedRows& in, int64_t row, const Vec& bias, const PanelOutput& out,
                   int out_row) {
  constexpr int kQuads = kGroup / 4;
  constexpr int64_t kStride = 2 * kScaleBytes<kWide> + kCodeBytes<kEncoding, kGroup>;
  const int64_t groups = in.columns / kGroup;
  const int64_t scales_per_row = in.columns / kActivationGroup;
  const int8_t* values = in.values + row * in.columns;
  const float* scales = in.scales + row * scales_per_row;
  const float* sums = in.sums + row * groups;
  Vec total[kRows] = {};
  for (int64_t group = 0; group < groups; ++group) {
    const Vec scale = LoadScales<kWide>(panel), minimum = LoadScales<kWide>(panel + kScaleBytes<kWide>);
    Codes codes[kQuads];
    LoadGroup<kEncoding, kQuads>(panel + 2 * kScaleBytes<kWide>, codes);
    // With few rows what is waited for are the weights on their way from memory; the next panel follows this one.
    if (out_row == 0) {
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(panel) + kPrefetchBytes;
      for (int64_t byte = 0; byte < kStride; byte += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + byte));
    }
    panel += kStride;
    IntVec dots[kRows], rests[kTwoPlanes ? kRows : 1];
    const int8_t* in_group = values + group * kGroup;
    GroupDots(codes, in_group, in.columns, dots);
    if constexpr (kTwoPlanes) GroupDots(codes, in_group + in.plane_stride, in.columns, rests);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Vec row_scale = Broadcast(scales[r * scales_per_row + group * kGroup / kActivationGroup]);
      Vec product = __builtin_convertvector(dots[r], Vec);
      if constexpr (kTwoPlanes) {
        product = MultiplyAdd(__builtin_convertvector(rests[r], Vec), Broadcast(1.0f / kPlaneRatio), product);
      }
      total[r] = MultiplyAdd(product, scale * row_scale, total[r]);
      total[r] = MultiplyAdd(minimum, Broadcast(sums[r * groups + group]), total[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) StoreResult(total[r], bias, out_row + r, out);
}

#if defined(__AMX_INT8__)
// QuantisedTile of kAmxRows rows, with the integer sums from tiles. Some groups at a time go through each stage
// (unpack, tiles, floats): what a tile wrote, or is to read, cannot be forwarded in the processor, and waits for the
// cache.
template <PackedEncoding kEncoding, int kGroup, bool kWide, bool kTwoPlanes>
void AmxTile(const uint8_t* panel, const QuantisedRows& in, int64_t row, const Vec& bias, const PanelOutput& out,
             int out_row) {
  constexpr int kQuads = kGroup / 4, kAtOnce = 8;
  constexpr int64_t kStride = 2 * kScaleBytes<kWide> + kCodeBytes<kEncoding, kGroup>;
  const int64_t groups = in.columns / kGroup;
  const int64_t scales_per_row = in.columns / kActivationGroup;
  const int8_t* values = in.values + row * in.columns;
  const float* scales = in.scales + row * scales_per_row;
  const float* sums = in.sums + row * groups;
  alignas(64) int32_t dots[kAtOnce][kAmxRows][kPanelRows];
  alignas(64) int32_t rests[kTwoPlanes ? kAtOnce : 1][kAmxRows][kPanelRows];
  alignas(64) Codes unpacked[kEncoding == PackedEncoding::kU4 ? kAtOnce : 1][kQuads];
  Vec total[kAmxRows] = {};
  for (int64_t first = 0; first < groups; first += kAtOnce) {
    const int count = static_cast<int>(groups - first < kAtOnce ? groups - first : kAtOnce);
    const uint8_t* begin = panel + first * kStride;
    if constexpr (kEncoding == PackedEncoding::kU4) {
      for (int i = 0; i < count; ++i) {
        LoadGroup<kEncoding, kQuads>(begin + i * kStride + 2 * kScaleBytes<kWide>, unpacked[i]);
      }
    }
    for (int i = 0; i < count; ++i) {
      if constexpr (kEncoding == PackedEncoding::kU4) {
        LoadCodesTile<kGroup>(reinterpret_cast<const uint8_t*>(unpacked[i]));
      } else {
        LoadCodesTile<kGroup>(begin + i * kStride + 2 * kScaleBytes<kWide>);
      }
      const int8_t* in_group = values + (first + i) * kGroup;
      GroupSums<kGroup>(in_group, in.columns, dots[i]);
      if constexpr (kTwoPlanes) GroupSums<kGroup>(in_group + in.plane_stride, in.columns, rests[i]);
    }
    for (int i = 0; i < count; ++i) {
      const uint8_t* at = begin + i * kStride;
      const Vec scale = LoadScales<kWide>(at), minimum = LoadScales<kWide>(at + kScaleBytes<kWide>);
#pragma GCC unroll 16
      for (int r = 0; r < kAmxRows; ++r) {
        IntVec dot;
        std::memcpy(&dot, dots[i][r], sizeof(dot));
        Vec row_scale = Broadcast(scales[r * scales_per_row + (first + i) * kGroup / kActivationGroup]);
        Vec product = __builtin_convertvector(dot, Vec);
        if constexpr (kTwoPlanes) {
          IntVec rest;
          std::memcpy(&rest, rests[i][r], sizeof(rest));
          product = MultiplyAdd(__builtin_convertvector(rest, Vec), Broadcast(1.0f / kPlaneRatio), product);
        }
        total[r] = MultiplyAdd(product, scale * row_scale, total[r]);
        total[r] = MultiplyAdd(minimum, Broadcast(sums[r * groups + first + i]), total[r]);
      }
    }
  }
  for (int r = 0; r < kAmxRows; ++r) StoreResult(total[r], bias, out_row + r, out);
}
#endif

template <PackedEncoding kEncoding, int kGroup, bool kWide, bool kTwoPlanes>
void QuantisedRowsTimesPanel(const PackedMatrix& weight, int64_t panel, const QuantisedRows& in, int64_t first_row,
                             int64_t num_rows, const PanelOutput& out) {
  const uint8_t* codes = weight.panel(panel);
  Vec bias = LoadBias(weight, panel);
  int64_t r = 0;
#if defined(__AMX_INT8__)
  ConfigureTiles();
  for (; r + kAmxRows <= num_rows; r += kAmxRows) {
    AmxTile<kEncoding, kGroup, kWide, kTwoPlanes>(codes, in, first_row + r, bias, out, static_cast<int>(r));
  }
#endif
  for (; r + kTileRows <= num_rows; r += kTileRows) {
    QuantisedTile<kEncoding, kGroup, kWide, kTwoPlanes, kTileRows>(codes, in, first_row + r, bias, out,
                                                                   static_cast<int>(r));
  }
  if (num_rows - r >= 4) {
    QuantisedTile<kEncoding, kGroup, kWide, kTwoPlanes, 4>(codes, in, first_row + r, bias, out, static_cast<int>(r));
    r += 4;
  }
  if (num_rows - r >= 2) {
    QuantisedTile<kEncoding, kGroup, kWide, kTwoPlanes, 2>(codes, in, first_row + r, bias, out, static_cast<int>(r));
    r += 2;
  }
  if (num_rows - r >= 1) {
    QuantisedTile<kEncoding, kGroup, kWide, kTwoPlanes, 1>(codes, in, first_row + r, bias, out, static_cast<int>(r));
  }
}

template <PackedEncoding kEncoding>
TANDEM_INLINE Vec LoadWeights(const uint8_t* panel, int64_t column) {
  if constexpr (kEncoding == PackedEncoding::kF32) {
    return LoadVec(reinterpret_cast<const float*>(panel) + column * kPanelRows);
  } else if constexpr (kEncoding == PackedEncoding::kF16) {
    return LoadHalfVec(panel + column * kPanelRows * 2);
  } else {
    return LoadBFloatVec(panel + column * kPanelRows * 2);
  }
}

template <PackedEncoding kEncoding, int kRows>
void FloatTile(const uint8_t* panel, const float* in, int64_t in_stride, int64_t columns, const Vec& bias,
               const PanelOutput& out, int out_row) {
  Vec total[kRows] = {};
  for (int64_t column = 0; column < columns; ++column) {
    Vec weights = LoadWeights<kEncoding>(panel, column);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      total[r] = MultiplyAdd(weights, Broadcast(in[r * in_stride + column]), total[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) StoreResult(total[r], bias, out_row + r, out);
}

template <PackedEncoding kEncoding>
void FloatRowsTimesPanel(const PackedMatrix& weight, int64_t panel, const float* in, int64_t in_stride,
                         int64_t num_rows, const PanelOutput& out) {
  const uint8_t* weights = weight.panel(panel);
  Vec bias = LoadBias(weight, panel);
  int64_t r = 0;
  for (; r + kTileRows <= num_rows; r += kTileRows) {
    FloatTile<kEncoding, kTileRows>(weights, in + r * in_stride, in_stride, weight.in(), bias, out,
                                    static_cast<int>(r));
  }
  for (; r < num_rows; ++r) {
    FloatTile<kEncoding, 1>(weights, in + r * in_stride, in_stride, weight.in(), bias, out, static_cast<int>(r));
  }
}

}  // namespace

void QuantiseRow(const float* in, int64_t columns, int group_columns, int8_t* values, int8_t* second_plane,
                 float* scales, float* sums) {
  for (int64_t begin = 0; begin < columns; begin += kActivationGroup) {
    const Vec halves[2] = {LoadVec(in + begin), LoadVec(in + begin + 16)};
    Vec top = halves[0] > halves[1] ? halves[0] : halves[1], bottom = halves[0] < halves[1] ? halves[0] : halves[1];
    const float largest = Max(top > -bottom ? top : -bottom);
    const float scale = largest > kLeastActivation ? largest / 127.0f : 0.0f;
    const float inverse = largest > kLeastActivation ? 127.0f / largest : 0.0f;
    scales[begin / kActivationGroup] = scale;
    int32_t sum[2], second_sum[2] = {};
    for (int half = 0; half < 2; ++half) {
      const Vec scaled = halves[half] * inverse;
      const IntVec rounded = Round(scaled);
      StoreBytes(values + begin + half * 16, rounded);
      sum[half] = Sum(rounded);
      if (second_plane == nullptr) continue;
      const IntVec rest = Round((scaled - __builtin_convertvector(rounded, Vec)) * kPlaneRatio);
      StoreBytes(second_plane + begin + half * 16, rest);
      second_sum[half] = Sum(rest);
    }
    auto in_units = [&](int32_t first, int32_t second) {
      return scale * (static_cast<float>(first) + static_cast<float>(second) / kPlaneRatio);
    };
    if (group_columns == kActivationGroup) {
      sums[begin / kActivationGroup] = in_units(sum[0] + sum[1], second_sum[0] + second_sum[1]);
    } else {
      for (int half = 0; half < 2; ++half) sums[begin / 16 + half] = in_units(sum[half], second_sum[half]);
    }
  }
}

namespace {

template <bool kTwoPlanes>
void ChooseQuantisedPanel(const PackedMatrix& weight, int64_t panel, const QuantisedRows& in, int64_t first_row,
                          int64_t num_rows, const PanelOutput& out) {
  constexpr PackedEncoding kU4 = PackedEncoding::kU4, kU8 = PackedEncoding::kU8;
  if (weight.encoding == kU4) {
    weight.wide_scales
        ? QuantisedRowsTimesPanel<kU4, 32, true, kTwoPlanes>(weight, panel, in, first_row, num_rows, out)
        : QuantisedRowsTimesPanel<kU4, 32, false, kTwoPlanes>(weight, panel, in, first_row, num_rows, out);
  } else if (weight.group_columns == 16) {
    QuantisedRowsTimesPanel<kU8, 16, true, kTwoPlanes>(weight, panel, in, first_row, num_rows, out);
  } else {
    weight.wide_scales
        ? QuantisedRowsTimesPanel<kU8, 32, true, kTwoPlanes>(weight, panel, in, first_row, num_rows, out)
        : QuantisedRowsTimesPanel<kU8, 32, false, kTwoPlanes>(weight, panel, in, first_row, num_rows, out);
  }
}

}  // namespace

void QuantisedPanel(const PackedMatrix& weight, int64_t panel, const QuantisedRows& in, int64_t first_row,
                    int64_t num_rows, const PanelOutput& out) {
  weight.two_planes ? ChooseQuantisedPanel<true>(weight, panel, in, first_row, num_rows, out)
                    : ChooseQuantisedPanel<false>(weight, panel, in, first_row, num_rows, out);
}

void FloatPanel(const PackedMatrix& weight, int64_t panel, const float* in, int64_t in_stride, int64_t num_rows,
                const PanelOutput& out) {
  switch (weight.encoding) {
    case PackedEncoding::kF32:
      return FloatRowsTimesPanel<PackedEncoding::kF32>(weight, panel, in, in_stride, num_rows, out);
    case PackedEncoding::kF16:
      return FloatRowsTimesPanel<PackedEncoding::kF16>(weight, panel, in, in_stride, num_rows, out);
    case PackedEncoding::kBF16:
      return FloatRowsTimesPanel<PackedEncoding::kBF16>(weight, panel, in, in_stride, num_rows, out);
    case PackedEncoding::kU4:
    case PackedEncoding::kU8:
      return;
  }
}

}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
