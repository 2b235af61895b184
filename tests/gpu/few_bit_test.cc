// Weights of few bits in the device's memory against what they stand for, on random codes and scales.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/few_bit_weight.h"
#include "engine/cuda/skinny_linear.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"

namespace tandem {
namespace {

struct Format {
  const char* name;
  DType dtype;
  int64_t group;  // 0: a row.
  WeightKind kind;
};
constexpr Format kFormats[] = {{"Int8", DType::kI8, 0, WeightKind::kInt8},
                               {"Int4By32", DType::kI4, 32, WeightKind::kInt4},
                               {"Int4By128", DType::kI4, 128, WeightKind::kInt4},
                               {"Int4ByRow", DType::kI4, 0, WeightKind::kInt4},
                               {"Float4", DType::kF4E2M1, 16, WeightKind::kFloat4}};

uint16_t Bits(float value) {
  const Bf16 rounded = __float2bfloat16(value);
  uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}

// A matrix as it would lie in a checkpoint.
struct StoredMatrix {
  StoredMatrix(const Format& format, int64_t rows, int64_t columns, std::mt19937& random) {
    const int64_t group = format.group == 0 ? columns : format.group;
    codes.resize(format.dtype == DType::kI8 ? rows * columns : rows * columns / 2);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
    for (int64_t i = 0; i < rows * (columns / group); ++i) {
      if (format.kind == WeightKind::kFloat4) {
        table.push_back(static_cast<uint8_t>(random() % 127));  // All codes of E4M3 over 0, the smallest ones, too.
      } else if (format.kind == WeightKind::kInt4) {
        const uint16_t bits = Bits(0.001f * static_cast<float>(1 + random() % 900));
        table.insert(table.end(), {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)});
      } else {
        const float scale = 1e-5f * static_cast<float>(1 + random() % 10'000);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&scale);
        table.insert(table.end(), bytes, bytes + sizeof(scale));
      }
    }
    view = {.name = "layers.0.q", .dtype = format.dtype, .shape = {rows, columns}, .data = codes};
    view.scales = {.dtype = format.kind == WeightKind::kFloat4 ? DType::kF8E4M3
                            : format.kind == WeightKind::kInt4 ? DType::kBF16
                                                               : DType::kF32,
                   .data = table,
                   .table_columns = columns / group,
                   .block_rows = 1,
                   .block_columns = group,
                   .factor = 0.37f};
  }
  StoredMatrix(const StoredMatrix&) = delete;
  std::vector<uint8_t> codes, table;
  TensorView view;
};

// The same on the device.
struct DeviceMatrix {
  explicit DeviceMatrix(const StoredMatrix& stored, WeightKind kind)
      : packed(Pack(stored, kind)),
        tables(FewBitScalesOf({&stored.view, 1})),
        scales(tables.scales.empty() ? std::vector<uint16_t>(1) : tables.scales),
        factors(tables.factors) {
    weight = {.kind = kind,
              .codes = packed.device(),
              .scales = reinterpret_cast<const Bf16*>(scales.device()),
              .scale_columns = tables.scale_columns,
              .group_bits = tables.group_bits,
              .factors = factors.device()};
  }
  static std::vector<uint8_t> Pack(const StoredMatrix& stored, WeightKind kind) {
    const int64_t row_bytes = FewBitRowBytes(kind, stored.view.columns());
    std::vector<uint8_t> all(stored.view.rows() * row_bytes);
    for (int64_t row = 0; row < stored.view.rows(); ++row)
      PackFewBitRow(stored.view, row, all.data() + row * row_bytes);
    return all;
  }
  Both<uint8_t> packed;
  FewBitScales tables;
  Both<uint16_t> scales;
  Both<float> factors;
  FewBitWeight weight;
};

std::vector<double> ValuesOf(const TensorView& view) {
  std::vector<double> all;
  std::vector<float> row(view.columns());
  for (int64_t i = 0; i < view.rows(); ++i) {
    DequantizeRow(view, i, view.columns(), row.data());
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

TEST(FewBitWeightTest, StaysWhereThereIsAFormForIt) {
  std::mt19937 random(3);
  const ModelConfig dense;
  ModelConfig sparse;
  sparse.moe.num_experts = 4;
  for (const Format& format : kFormats) {
    SCOPED_TRACE(format.name);
    StoredMatrix one(format, 32, 256, random), other(format, 16, 256, random);
    EXPECT_EQ(FewBitKindOf({one.view, other.view}, dense), format.kind);
    EXPECT_EQ(FewBitKindOf({one.view}, sparse), WeightKind::kBf16);
    TensorView head = one.view;
    head.name = "lm_head";
    EXPECT_EQ(FewBitKindOf({head}, dense), WeightKind::kBf16);
    TensorView cut = one.view;  // As a rank has it whose share begins within a group.
    cut.scales.first_column = 8;
    EXPECT_EQ(FewBitKindOf({cut}, dense), WeightKind::kBf16);
    TensorView second = one.view;  // The second of two ranks' shares of a matrix that is twice as wide.
    second.scales.first_column = 256;
    if (format.group == 0) second.scales.block_columns = 512;
    EXPECT_EQ(FewBitKindOf({second}, dense), format.kind);
    StoredMatrix narrow(format, 32, 96, random);
    EXPECT_EQ(FewBitKindOf({narrow.view}, dense), WeightKind::kBf16);
    TensorView bare = one.view;
    bare.scales = {};
    EXPECT_EQ(FewBitKindOf({bare}, dense), WeightKind::kBf16);
  }
  StoredMatrix by32(kFormats[1], 16, 256, random), by128(kFormats[2], 16, 256, random);
  EXPECT_EQ(FewBitKindOf({by32.view, by128.view}, dense), WeightKind::kBf16) << "groups differ";
  by32.view.scales.dtype = DType::kF16;  // Bf16 would round it.
  EXPECT_EQ(FewBitKindOf({by32.view}, dense), WeightKind::kBf16);
}

class FewBitTest : public CudaKernelsTest, public testing::WithParamInterface<Format> {};

TEST_P(FewBitTest, WidenedIsWhatTheCheckpointSays) {
  for (const auto& [rows, columns] : {std::pair<int, int>{1, 128}, {48, 256}, {17, 1152}}) {
    StoredMatrix stored(GetParam(), rows, columns, random_);
    DeviceMatrix matrix(stored, GetParam().kind);
    Both<Bf16> out(std::vector<Bf16>(size_t(rows) * columns, __float2bfloat16(-7)));
    Check(LaunchWidenWeight(matrix.weight, rows, columns, out.device(), nullptr));
    Finish();
    const std::vector<Bf16> got = out.Read();
    const std::vector<double> wanted = ValuesOf(stored.view);
    // Code times scale is rounded once, and again with the factor.
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(Value(got[i]), wanted[i], std::abs(wanted[i]) / 120) << rows << " x " << columns << " at " << i;
    }
  }
}

TEST_P(FewBitTest, LinearOfFewRowsIsThatOfTheHost) {
  struct Case {
    int rows, in, out;
    bool norm, gated, add, bias;
  };
  std::vector<Case> cases;
  for (int rows : {1, 3, 8, 9, 16}) {
    cases.push_back({rows, 512, 256, true, false, false, false});
    cases.push_back({rows, 640, 512, true, true, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false});
    cases.push_back({rows, 4096, 1024, true, false, false, true});
    cases.push_back({rows, 128, 16, false, false, false, false});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    const int columns = c.gated ? c.out / 2 : c.out;
    StoredMatrix stored(GetParam(), c.out, c.in, random_);
    DeviceMatrix matrix(stored, GetParam().kind);
    TensorView without_factor = stored.view;
    without_factor.scales.factor = 1;
    std::vector<double> values = ValuesOf(without_factor);
    for (double& value : values) {
      // Of 4 bits, code times scale is a number in bf16.
      if (GetParam().kind != WeightKind::kInt8) value = Value(__float2bfloat16(static_cast<float>(value)));
      value *= stored.view.scales.factor;
    }
    double squares = 0;
    for (double value : values) squares += value * value;
    // Sums of about 1, so that a gate is neither open nor shut.
    const auto small = static_cast<float>(1 / std::sqrt(squares / c.out));
    Both<Bf16> in(Random(size_t(c.rows) * c.in, c.norm ? 1 : small)), out(Random(size_t(c.rows) * columns)),
        norm(Random(c.in, small)), bias(Random(c.out));
    SkinnyLinearArguments a;
    a.few_bits = matrix.weight;
    a.in = in.device();
    if (c.norm) a.norm = norm.device();
    if (c.bias) a.bias = bias.device();
    a.epsilon = 1e-5f;
    a.out = out.device();
    a.add = c.add;
    a.is_gated = c.gated;
    a.rows = c.rows;
    a.out_features = c.out;
    a.in_features = c.in;
    ASSERT_TRUE(IsSkinny(a));
    Check(LaunchSkinnyLinear(a, multiprocessors_, nullptr));
    Finish();
    std::vector<double> wanted;
    for (int row = 0; row < c.rows; ++row) {
      double sum = 0;
      std::vector<double> x(c.in);
      for (int k = 0; k < c.in; ++k) {
        x[k] = Value(in.host[size_t(row) * c.in + k]);
        sum += x[k] * x[k];
      }
      for (int k = 0; k < c.in && c.norm; ++k) {
        x[k] = Value(__float2bfloat16(static_cast<float>(x[k] * Value(norm.host[k])))) / std::sqrt(sum / c.in + 1e-5);
      }
      const auto dot = [&](int feature) {
        double total = 0;
        for (int k = 0; k < c.in; ++k) total += x[k] * values[size_t(feature) * c.in + k];
        return total;
      };
      for (int column = 0; column < columns; ++column) {
        double value = dot(column);
        if (c.gated) value = value / (1 + std::exp(-value)) * dot(columns + column);
        if (c.bias) value += Value(bias.host[column]);
        if (c.add) value += Value(out.host[size_t(row) * columns + column]);
        wanted.push_back(value);
      }
    }
    ExpectNear(out.Read(), wanted, 0.01, "out");
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, FewBitTest, testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tandem
