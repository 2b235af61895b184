#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/topology.h"
#include "engine/ops.h"
#include "model/tensor.h"

namespace tandem {

// Rows of a panel: one 512-bit register of f32, and the N of an AMX tile.
inline constexpr int kPanelRows = 16;
// Columns that share an activation scale.
inline constexpr int kActivationGroup = 32;

// How a packed matrix encodes its weights. Quantised ones are unsigned integers u with weight =
// scale * u + minimum per group of columns, which all of ggml's block formats become without loss.
enum class PackedEncoding {
  kU4,  // Two weights a byte, groups of 32.
  kU8,  // One a byte, groups of `group_columns` (16 or 32).
  kF32,
  kF16,
  kBF16,
};

// A weight matrix [out, in], cut into panels of 16 rows whose elements lie in the order in which
// kernels read them:
//   kU4:  per group [scales 16][minima 16][4][16 rows][4]: byte (j, r, b) has column 8 j + b in its
//   low and
//         8 j + 4 + b in its high nibble.
//   kU8:  per group [scales 16][minima 16][group_columns / 4][16 rows][4 columns].
//   floats: [in][16 rows].
// Scales and minima are f16, or f32 where a format's do not fit f16 (K-quants). Missing rows are
// zero.
class PackedMatrix {
 public:
  // Stacks the parts by rows; they have one encoding. With kFull, quantised weights become f32.
  static std::unique_ptr<PackedMatrix> Pack(absl::Span<const TensorView> parts, absl::Span<const TensorView> biases,
                                            Precision precision, InputPrecision input_precision);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

  PackedEncoding encoding = PackedEncoding::kF32;
  int group_columns = 32;
  bool wide_scales = false;  // f32 scales and minima.
  // Activations come as two int8 planes, 16 bits in all.
  bool two_planes = false;
  int64_t num_panels = 0;
  int64_t panel_bytes = 0;
  const uint8_t* panels = nullptr;  // 64-byte aligned.
  std::vector<float> bias;          // Empty, or [num_panels * 16].

  bool is_quantised() const { return encoding == PackedEncoding::kU4 || encoding == PackedEncoding::kU8; }
  const uint8_t* panel(int64_t index) const { return panels + index * panel_bytes; }

 private:
  PackedMatrix(int64_t out, int64_t in) : out_(out), in_(in) {}
  const int64_t out_, in_;
  std::vector<uint8_t> storage_;
};

// Bytes of a matrix of these weights once packed.
int64_t PackedBytes(const TensorView& weights, Precision precision);

// A linear layer's weights: matrices that lie one below the other. There is one, but where the parts have unlike
// encodings: Q4_K_M files keep V in more bits than Q and K in half of their layers.
class PackedLinear final : public LinearWeight {
 public:
  // Stacks the parts by rows. INVALID_ARGUMENT for parts of unlike widths.
  static absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(absl::Span<const TensorView> parts,
                                                            absl::Span<const TensorView> biases, Precision precision,
                                                            InputPrecision input_precision);
  const std::vector<std::unique_ptr<PackedMatrix>>& matrices() const { return matrices_; }

 private:
  PackedLinear(int64_t out, int64_t in) : LinearWeight(out, in) {}
  std::vector<std::unique_ptr<PackedMatrix>> matrices_;
};

// Activations quantised for kU4 and kU8 weights: q = round(x / scale), scale = max|x| / 127 per
// group of 32. With two planes the second holds what the first left: x = scale * (q + q2 /
// kPlaneRatio).
struct QuantisedRows {
  const int8_t* values = nullptr;  // [planes][rows][columns]
  const float* scales = nullptr;   // [rows][columns / 32]
  const float* sums = nullptr;     // [rows][columns / group_columns]: scale * sum of q.
  int64_t columns = 0;
  int group_columns = 32;
  int64_t plane_stride = 0;  // Bytes from one plane to the next.
};

// The rest after the first plane is at most half a step; this many steps of the second cover it.
inline constexpr float kPlaneRatio = 254.0f;

}  // namespace tandem
