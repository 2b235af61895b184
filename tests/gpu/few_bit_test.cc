// Weights of few bits in the device's memory against what they stand for, on random codes and scales.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/few_bit_weight.h"
#include "engine/cuda/few_rows.h"
#include "gtest/gtest.h"
#include "model/quantised_row.h"
#include "model/weight_shard.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/linear_reference.h"

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

// The value of a matrix's feature as FewBitWeight says, of packed rows and tables of one row after the other.
double UnpackedValue(WeightKind kind, const uint8_t* row, const FewBitScales& tables, int64_t row_index, int column) {
  const int step = StepFeatures(kind), feature = column % step, m = feature / 16, q = feature % 16 / 4, i = feature % 4;
  const uint8_t* bytes = row + column / step * 64 + q * 16;
  const double factor = tables.factors[row_index];
  if (kind == WeightKind::kInt8) return static_cast<int8_t>(bytes[m * 4 + i]) * factor;
  uint32_t word;
  std::memcpy(&word, bytes + m / 2 * 4, sizeof(word));
  const int code = word >> (4 * (2 * (m % 2) + i / 2 + 4 * (i % 2))) & 0xf;
  const Bf16 scale(__nv_bfloat16_raw{tables.scales[row_index * tables.scale_columns + (column >> tables.group_bits)]});
  const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};  // E2M1's.
  const double value =
      kind == WeightKind::kInt4 ? code - 8 : (code < 8 ? 1 : -1) * magnitudes[code % 8] * std::ldexp(1, -126);
  return value * Value(scale) * factor;
}

// What a matrix of two parts becomes where it stays in few bits.
void ExpectValuesAfterPacking(absl::Span<const TensorView> parts, WeightKind kind) {
  const FewBitScales tables = FewBitScalesOf(parts);
  int64_t row_index = 0;
  for (const TensorView& part : parts) {
    std::vector<uint8_t> packed(FewBitRowBytes(kind, part.columns()));
    std::vector<float> wanted(part.columns());
    for (int64_t row = 0; row < part.rows(); ++row, ++row_index) {
      PackFewBitRow(part, row, packed.data());
      DequantizeRow(part, row, part.columns(), wanted.data());
      for (int column = 0; column < part.columns(); ++column) {
        const double got = UnpackedValue(kind, packed.data(), tables, row_index, column);
        ASSERT_NEAR(got, wanted[column], std::abs(wanted[column]) * 1e-6) << "row " << row << " column " << column;
      }
    }
  }
}

TEST(FewBitWeightTest, SharesOfRanksKeepTheirValues) {
  std::mt19937 random(5);
  const ModelConfig dense;
  constexpr Format kMore[] = {{"Int4By192", DType::kI4, 192, WeightKind::kInt4},
                              {"Int4By256", DType::kI4, 256, WeightKind::kInt4}};
  std::vector<Format> formats(std::begin(kFormats), std::end(kFormats));
  formats.insert(formats.end(), std::begin(kMore), std::end(kMore));
  int stayed = 0;
  for (const Format& format : formats) {
    for (int ranks : {1, 2, 3, 6}) {
      for (int rank = 0; rank < ranks; ++rank) {
        SCOPED_TRACE(testing::Message() << format.name << " rank " << rank << " of " << ranks);
        StoredMatrix one(format, 12, 768, random), other(format, 6, 768, random);
        other.view.scales.factor = 3;
        std::vector<uint8_t> one_storage, other_storage;
        const Shard shard{rank, ranks};
        const TensorView by_rows[] = {ShardRows(one.view, shard), ShardRows(other.view, shard)};
        const TensorView by_columns[] = {ShardColumns(one.view, shard, one_storage),
                                         ShardColumns(other.view, shard, other_storage)};
        for (absl::Span<const TensorView> parts : {absl::MakeConstSpan(by_rows), absl::MakeConstSpan(by_columns)}) {
          if (FewBitKindOf(parts, dense) == WeightKind::kBf16) continue;
          ++stayed;
          ExpectValuesAfterPacking(parts, format.kind);
        }
        // A share of 128 columns lies in a group of 256, or in one of 192 or over the end of it.
        const bool is_within = format.group != 192 || rank % 3 != 1;
        const bool divides = format.group == 0 || 768 / ranks % format.group == 0;
        const bool is_small = ranks == 6 && format.group > 128 && is_within;
        EXPECT_EQ(FewBitKindOf(by_columns, dense) != WeightKind::kBf16, (divides && format.group != 192) || is_small);
      }
    }
  }
  EXPECT_GT(stayed, 80);
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
  std::vector<LinearCase> cases;
  for (int rows : {1, 3, 8, 9, 16, 17, 31, 32, 33, 64}) {  // More than 32 in two passes.
    const bool norm = rows <= 16;
    cases.push_back({.rows = rows, .in = 512, .out = 256, .norm = norm});
    cases.push_back({.rows = rows, .in = 640, .out = 512, .norm = norm, .gated = true});
    cases.push_back({.rows = rows, .in = 14336, .out = 128, .add = true});
    cases.push_back({.rows = rows, .in = 4096, .out = 1024, .norm = norm, .bias = true});
    cases.push_back({.rows = rows, .in = 128, .out = 16});
    cases.push_back({.rows = rows, .in = 256, .out = 64, .is_float = true});
  }
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    StoredMatrix stored(GetParam(), c.out, c.in, random_);
    DeviceMatrix matrix(stored, GetParam().kind);
    TensorView without_factor = stored.view;
    without_factor.scales.factor = 1;
    std::vector<double> weights = ValuesOf(without_factor);
    double squares = 0;
    for (double& value : weights) {
      // Of 4 bits, code times scale is a number in bf16.
      if (GetParam().kind != WeightKind::kInt8) value = Value(__float2bfloat16(static_cast<float>(value)));
      value *= stored.view.scales.factor;
      squares += value * value;
    }
    // Sums of about 1, so that a gate is neither open nor shut.
    const auto small = static_cast<float>(1 / std::sqrt(squares / c.out));
    LinearValues values(c, c.norm ? 1 : small, small, random_);
    SkinnyLinearArguments a = values.Arguments(c);
    a.few_bits = matrix.weight;
    ASSERT_TRUE(RunFewRows(a, multiprocessors_, compute_major_, nullptr));
    Finish();
    values.Expect(c, weights);
  }
}

TEST_P(FewBitTest, ManyRowsAreForWidenedWeights) {
  SkinnyLinearArguments a;
  a.few_bits.kind = GetParam().kind;
  a.rows = 65, a.in_features = 512, a.out_features = 256;
  EXPECT_FALSE(RunFewRows(a, multiprocessors_, compute_major_, nullptr));
  EXPECT_TRUE(WantsNormBefore(a, compute_major_));
}

INSTANTIATE_TEST_SUITE_P(Formats, FewBitTest, testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tandem
