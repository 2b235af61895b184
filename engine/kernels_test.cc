// The CPU kernels against plain arithmetic on fresh random data, for every build that this
// processor runs.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/cpu/cpu_ops.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/packed_matrix.h"
#include "engine/cpu/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/half.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

std::mt19937& Random() {
  static std::mt19937 random(std::random_device{}());
  return random;
}

float Uniform() { return std::uniform_real_distribution<float>(-1, 1)(Random()); }

// Random bytes that are valid blocks: scales are small halves.
std::vector<uint8_t> RandomBlocks(DType dtype, int64_t rows, int64_t columns) {
  BlockShape shape = DTypeBlock(dtype);
  std::vector<uint8_t> bytes(rows * columns / shape.elements * shape.bytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(Random()());
  auto set_half = [&](size_t at, float value) {
    uint16_t half = FloatToHalf(value);
    std::memcpy(bytes.data() + at, &half, 2);
  };
  for (size_t block = 0; block < bytes.size() / shape.bytes; ++block) {
    size_t at = block * shape.bytes;
    switch (dtype) {
      case DType::kQ4_1:
      case DType::kQ5_1:
      case DType::kQ4_K:
      case DType::kQ5_K:
        set_half(at, Uniform() * 0.1f);
        set_half(at + 2, Uniform() * 0.1f);
        break;
      case DType::kQ6_K:
        set_half(at + 208, Uniform() * 0.01f);
        break;
      case DType::kF32:
        break;
      default:
        if (shape.elements > 1) set_half(at, Uniform() * 0.1f);
    }
  }
  if (shape.elements == 1) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      float value = Uniform();
      if (dtype == DType::kF32) std::memcpy(bytes.data() + 4 * i, &value, 4);
      if (dtype == DType::kF16) set_half(2 * i, value);
      if (dtype == DType::kBF16) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        uint16_t high = static_cast<uint16_t>(bits >> 16);
        std::memcpy(bytes.data() + 2 * i, &high, 2);
      }
    }
  }
  return bytes;
}

// The build of that name, or null where this processor does not run it.
const Kernels* KernelsNamed(std::string_view name) {
  for (const Kernels* kernels : AvailableKernels()) {
    if (kernels->name == name) return kernels;
  }
  return nullptr;
}

class LinearKernel : public testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  const Kernels* kernels() const { return KernelsNamed(std::get<0>(GetParam())); }
};

// in [rows][columns] times the matrix, by the kernels.
std::vector<float> Multiply(const Kernels& kernels, const PackedMatrix& matrix, const std::vector<float>& in,
                            int64_t rows) {
  const int64_t columns = matrix.in();
  std::vector<float> out(rows * matrix.out(), -1);
  std::vector<int8_t> values(2 * rows * columns);
  std::vector<float> scales(rows * columns / 32 + 1), sums(rows * columns / matrix.group_columns + 1);
  for (int64_t r = 0; r < rows && matrix.is_quantised(); ++r) {
    kernels.quantise_row(in.data() + r * columns, columns, matrix.group_columns, values.data() + r * columns,
                         matrix.two_planes ? values.data() + (rows + r) * columns : nullptr,
                         scales.data() + r * columns / 32, sums.data() + r * columns / matrix.group_columns);
  }
  QuantisedRows quantised{values.data(), scales.data(), sums.data(), columns, matrix.group_columns, rows * columns};
  for (int64_t panel = 0; panel < matrix.num_panels; ++panel) {
    PanelOutput to{out.data() + panel * kPanelRows, matrix.out(),
                   static_cast<int>(std::min<int64_t>(kPanelRows, matrix.out() - panel * kPanelRows)), false};
    if (matrix.is_quantised()) {
      kernels.quantised_panel(matrix, panel, quantised, 0, rows, to);
    } else {
      kernels.float_panel(matrix, panel, in.data(), columns, rows, to);
    }
  }
  return out;
}

TEST_P(LinearKernel, MatchesDequantisedArithmetic) {
  if (kernels() == nullptr) GTEST_SKIP() << "this processor has no such kernels";
  const DType dtype = std::get<1>(GetParam());
  const int64_t out = 37, in = 512;  // Rows that do not fill a panel.
  std::vector<uint8_t> bytes = RandomBlocks(dtype, out, in);
  TensorView tensor{"w", dtype, {out, in}, bytes};
  for (InputPrecision precision : {InputPrecision::kUsual, InputPrecision::kSensitive}) {
    auto matrix = PackedMatrix::Pack({tensor}, {}, Precision::kQuantised, precision);
    for (int64_t rows : {1, 2, 3, 8, 13, 16, 37}) {
      std::vector<float> x(rows * in + 16);
      for (float& value : x) value = Uniform();
      std::vector<float> got = Multiply(*kernels(), *matrix, x, rows);
      std::vector<float> weights(in);
      for (int64_t o = 0; o < out; ++o) {
        DequantizeRow(tensor, o, in, weights.data());
        for (int64_t r = 0; r < rows; ++r) {
          double wanted = 0, size = 0;
          for (int64_t i = 0; i < in; ++i) {
            wanted += static_cast<double>(weights[i]) * x[r * in + i];
            size += std::fabs(weights[i] * x[r * in + i]);
          }
          // int8 activations: half a step of 1/127 each, mostly cancelling; the bound is on their
          // sum.
          double bound = !matrix->is_quantised() ? 1e-6 : precision == InputPrecision::kUsual ? 4e-3 : 3e-5;
          ASSERT_NEAR(got[r * out + o], wanted, bound * size + 1e-5) << "row " << r << " output " << o;
        }
      }
    }
  }
}

TEST_P(LinearKernel, ARowDoesNotDependOnTheBatch) {
  if (kernels() == nullptr) GTEST_SKIP() << "this processor has no such kernels";
  const DType dtype = std::get<1>(GetParam());
  std::vector<uint8_t> bytes = RandomBlocks(dtype, 32, 256);
  auto matrix = PackedMatrix::Pack({{"w", dtype, {32, 256}, bytes}}, {}, Precision::kQuantised, InputPrecision::kUsual);
  constexpr int64_t kRows = 31;  // A tile of each height.
  std::vector<float> x(kRows * 256 + 16);
  for (float& value : x) value = Uniform();
  std::vector<float> all = Multiply(*kernels(), *matrix, x, kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    std::vector<float> one(x.begin() + r * 256, x.begin() + (r + 1) * 256);
    one.resize(256 + 16);
    EXPECT_EQ(Multiply(*kernels(), *matrix, one, 1),
              std::vector<float>(all.begin() + r * 32, all.begin() + (r + 1) * 32));
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, LinearKernel,
                         testing::Combine(testing::Values("portable", "avx512", "amx"),
                                          testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0,
                                                          DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                                                          DType::kQ4_K, DType::kQ5_K, DType::kQ6_K)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" +
                                  std::string(DTypeName(std::get<1>(info.param)));
                         });

TEST(PackedLinearTest, PartsOfUnlikeEncodingsKeepTheirOwn) {
  std::vector<uint8_t> q = RandomBlocks(DType::kQ4_K, 40, 256), k = RandomBlocks(DType::kQ4_K, 8, 256),
                       v = RandomBlocks(DType::kQ6_K, 8, 256);
  std::vector<TensorView> parts = {
      {"q", DType::kQ4_K, {40, 256}, q}, {"k", DType::kQ4_K, {8, 256}, k}, {"v", DType::kQ6_K, {8, 256}, v}};
  ASSERT_OK_AND_ASSIGN(auto linear, PackedLinear::Pack(parts, {}, Precision::kQuantised, InputPrecision::kUsual));
  ASSERT_EQ(linear->matrices().size(), 2);
  EXPECT_EQ(linear->matrices()[0]->out(), 48);
  EXPECT_EQ(linear->matrices()[0]->encoding, PackedEncoding::kU4);
  EXPECT_EQ(linear->matrices()[1]->out(), 8);
  EXPECT_EQ(linear->matrices()[1]->encoding, PackedEncoding::kU8);

  // Through the ops, the stacked output is that of the dequantised weights.
  auto ops = NewCpuOps(2, Precision::kQuantised);
  ASSERT_OK_AND_ASSIGN(auto weight, ops->PrepareLinear(parts, {}, InputPrecision::kSensitive));
  auto norm_of_ones = std::vector<float>(256, 1.0f);
  TensorView ones{
      "ones", DType::kF32, {256}, {reinterpret_cast<const uint8_t*>(norm_of_ones.data()), norm_of_ones.size() * 4}};
  ASSERT_OK_AND_ASSIGN(auto in, ops->NewActivation(1, 256, ActivationType::kWorking));
  ASSERT_OK_AND_ASSIGN(auto out, ops->NewActivation(1, 56, ActivationType::kFloat));
  ASSERT_OK_AND_ASSIGN(auto table, ops->PrepareEmbedding(TensorView{"ones", DType::kF32, {1, 256}, ones.data}));
  StepBatch batch{.tokens = {0}, .positions = {0}, .sequences = {{.num_rows = 1, .context_tokens = 1}}};
  ops->RunStep(batch, {}, {.num_heads = 1, .num_kv_heads = 1, .head_dim = 32}, [&] {
    ops->Embed(*table, *in);
    ops->Linear(*in, *weight, 1, /*add=*/false, *out);
  });
  SamplingParams all;
  all.logprobs = 56;
  ops->StartSample(*out, {{.params = &all}});
  std::vector<SampledToken> sampled = ops->CollectSamples();
  std::vector<double> wanted;
  for (const TensorView& part : parts) {
    std::vector<float> row(256);
    for (int64_t r = 0; r < part.rows(); ++r) {
      DequantizeRow(part, r, 256, row.data());
      wanted.push_back(std::accumulate(row.begin(), row.end(), 0.0));
    }
  }
  // Log probabilities are the outputs but for a constant.
  const double shift = wanted[sampled[0].top[0].token] - sampled[0].top[0].logprob;
  for (const TokenLogprob& entry : sampled[0].top) EXPECT_NEAR(entry.logprob + shift, wanted[entry.token], 0.02);
}

class AmxKernel : public testing::TestWithParam<DType> {};

TEST_P(AmxKernel, EqualsAvx512BitForBit) {
  const Kernels* amx = KernelsNamed("amx");
  if (amx == nullptr) GTEST_SKIP() << "this processor has no AMX";
  std::vector<uint8_t> bytes = RandomBlocks(GetParam(), 48, 512);
  for (InputPrecision precision : {InputPrecision::kUsual, InputPrecision::kSensitive}) {
    auto matrix = PackedMatrix::Pack({{"w", GetParam(), {48, 512}, bytes}}, {}, Precision::kQuantised, precision);
    std::vector<float> x(100 * 512 + 16);
    for (float& value : x) value = Uniform();
    EXPECT_EQ(Multiply(*amx, *matrix, x, 100), Multiply(*KernelsNamed("avx512"), *matrix, x, 100));
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AmxKernel,
                         testing::Values(DType::kQ4_0, DType::kQ5_0, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K,
                                         DType::kQ6_K),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// By the definition of OCP 8-bit floating point, E4M3.
float Float8Value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(code & 128 ? -value : value);
}

TEST(KvKernel, Float8IsTheNearestThereIs) {
  for (const char* build : {"portable", "avx512"}) {
    const Kernels* kernels = KernelsNamed(build);
    if (kernels == nullptr) continue;
    std::vector<float> values = {0, 448, -448, 449, 1e9f, -INFINITY, 0x1p-9f, 0x1p-10f, 0x1.8p-9f, 0x1p-6f, 0x1.fp-7f};
    for (int i = 0; i < 1000; ++i) values.push_back(std::ldexp(Uniform(), i % 24 - 12));
    std::vector<uint8_t> codes(values.size());
    kernels->store_kv(values.data(), static_cast<int64_t>(values.size()), /*element_bytes=*/1, codes.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const float wanted = std::clamp(values[i], -448.0f, 448.0f), got = Float8Value(codes[i]);
      for (int code = 0; code < 256; ++code) {
        if ((code & 127) == 127) continue;
        const float off = std::abs(Float8Value(static_cast<uint8_t>(code)) - wanted);
        ASSERT_LE(std::abs(got - wanted), off) << values[i];
        if (off == std::abs(got - wanted) && (code & 127) != (codes[i] & 127)) {
          ASSERT_EQ(codes[i] & 1, 0) << values[i] << " is between two";
        }
      }
    }
    const float nan = NAN;
    kernels->store_kv(&nan, 1, 1, codes.data());
    EXPECT_EQ(codes[0] & 127, 127);
  }
}

class AttentionKernel : public testing::TestWithParam<std::tuple<const char*, int, int, int>> {};

TEST_P(AttentionKernel, MatchesPlainSoftmaxForAnyPageSize) {
  const auto [build, page_tokens, head_dim, element_bytes] = GetParam();
  const Kernels* kernels = KernelsNamed(build);
  if (kernels == nullptr) GTEST_SKIP() << "this processor has no such kernels";
  KvLayout layout{.num_layers = 2,
                  .num_kv_heads = 2,
                  .head_dim = head_dim,
                  .element_bytes = element_bytes,
                  .page_tokens = page_tokens,
                  .num_pages = 80};
  std::vector<uint8_t> pool(layout.pool_bytes());
  std::vector<float> values(pool.size() / element_bytes);
  for (float& value : values) value = Uniform();
  kernels->store_kv(values.data(), static_cast<int64_t>(values.size()), element_bytes, pool.data());
  std::vector<PageIndex> pages(layout.num_pages);
  for (int i = 0; i < layout.num_pages; ++i) pages[i] = (i * 7 + 3) % layout.num_pages;
  const int rows = 5, group = 3, first_position = 36;
  std::vector<float> q(rows * group * head_dim), out(q.size());
  for (float& value : q) value = Uniform() * 3;
  AttentionTask task{.q = q.data(),
                     .q_stride = group * head_dim,
                     .out = out.data(),
                     .out_stride = group * head_dim,
                     .num_rows = rows,
                     .first_position = first_position,
                     .group_heads = group,
                     .kv = {layout, pool.data()},
                     .layer = 1,
                     .kv_head = 1,
                     .pages = pages.data()};
  std::vector<float> scratch(AttentionScratchFloats(task) + 16);
  kernels->attention(task, scratch.data());
  auto element = [&, bytes = element_bytes](int plane, int token, int d) {
    const uint8_t* at = pool.data() + layout.HeadOffset(pages[token / page_tokens], 1, plane, 1) +
                        ((token % page_tokens) * head_dim + d) * bytes;
    if (bytes == 1) return Float8Value(*at);
    uint16_t half;
    std::memcpy(&half, at, 2);
    if (bytes == 2) return HalfToFloat(half);
    float value;
    std::memcpy(&value, at, 4);
    return value;
  };
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < group; ++h) {
      const float* query = q.data() + (r * group + h) * head_dim;
      std::vector<double> weights;
      double sum = 0;
      for (int t = 0; t <= first_position + r; ++t) {
        double dot = 0;
        for (int d = 0; d < head_dim; ++d) dot += query[d] * element(0, t, d);
        weights.push_back(std::exp(dot / std::sqrt(head_dim)));
        sum += weights.back();
      }
      for (int d = 0; d < head_dim; ++d) {
        double wanted = 0;
        for (size_t t = 0; t < weights.size(); ++t) wanted += weights[t] / sum * element(1, static_cast<int>(t), d);
        ASSERT_NEAR(out[(r * group + h) * head_dim + d], wanted, 2e-5);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionKernel,
                         testing::Combine(testing::Values("portable", "avx512"), testing::Values(1, 7, 16, 32),
                                          testing::Values(16, 32, 40, 64, 80, 104, 128), testing::Values(1, 2, 4)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_page" +
                                  std::to_string(std::get<1>(info.param)) + "_bytes" +
                                  std::to_string(std::get<3>(info.param)) + "_dim" +
                                  std::to_string(std::get<2>(info.param));
                         });

TEST(ThreadPoolTest, RunsEachItemOnce) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> counts(37);
      pool.ParallelFor(37, [&](int64_t i) { ++counts[i]; });
      for (auto& count : counts) ASSERT_EQ(count, 1);
    }
  }
}

TEST(KernelChoiceTest, AnUnknownChoiceInTheEnvironmentIsRefusedWithThoseThereAre) {
  const char* former = getenv("TANDEM_CPU_KERNELS");
  const std::string kept = former == nullptr ? "" : former;
  unsetenv("TANDEM_CPU_KERNELS");
  EXPECT_THAT(CheckKernelChoice(), IsOk());
  setenv("TANDEM_CPU_KERNELS", "bogus", 1);
  EXPECT_THAT(CheckKernelChoice(), StatusIs(absl::StatusCode::kInvalidArgument,
                                            testing::HasSubstr("TANDEM_CPU_KERNELS=bogus: this processor runs ")));
  setenv("TANDEM_CPU_KERNELS", "portable", 1);
  EXPECT_THAT(CheckKernelChoice(), IsOk());
  EXPECT_STREQ(CpuKernelsName(), "portable");
  former == nullptr ? unsetenv("TANDEM_CPU_KERNELS") : setenv("TANDEM_CPU_KERNELS", kept.c_str(), 1);
}

TEST(PackedMatrixTest, PackedBytesCountWholePanels) {
  // 40 rows are 3 panels of 16; a row has 8 groups of 32, or 16 of 16.
  struct Case {
    DType dtype;
    int64_t group_bytes;  // Of 16 rows: scales, minima, codes.
  };
  for (const Case& wanted : {Case{DType::kQ4_1, 32 + 32 + 256}, Case{DType::kQ8_0, 32 + 32 + 512},
                             Case{DType::kQ4_K, 64 + 64 + 256}, Case{DType::kQ6_K, 2 * (64 + 64 + 256)}}) {
    const TensorView tensor{"w", wanted.dtype, {40, 256}, {}};
    EXPECT_EQ(PackedBytes(tensor, Precision::kQuantised), 3 * 8 * wanted.group_bytes) << DTypeName(wanted.dtype);
    EXPECT_EQ(PackedBytes(tensor, Precision::kFull), 3 * 16 * 256 * 4);
  }
  EXPECT_EQ(PackedBytes({"w", DType::kBF16, {40, 256}, {}}, Precision::kQuantised), 3 * 16 * 256 * 2);
}

TEST(QuantiseRowTest, TinyActivationsAreZero) {
  for (const Kernels* kernels : AvailableKernels()) {
    std::vector<float> in(32, 1e-38f);
    std::vector<int8_t> values(32, 9), rest(32, 9);
    float scale = 1, sum = 1;
    kernels->quantise_row(in.data(), 32, 32, values.data(), rest.data(), &scale, &sum);
    EXPECT_THAT(values, testing::Each(0)) << kernels->name;
    EXPECT_EQ(scale, 0);
    EXPECT_EQ(sum, 0);
  }
}

}  // namespace
}  // namespace tandem
