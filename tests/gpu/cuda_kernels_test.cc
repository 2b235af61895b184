// The kernels of engine/cuda against sums in double precision on the host, on random data.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/cuda/cublas_linear.h"
#include "engine/cuda/float8_kernels.h"
#include "engine/cuda/float8_weight.h"
#include "engine/cuda/moe_kernels.h"
#include "engine/cuda/sample_kernel.h"
#include "engine/cuda/skinny_linear.h"
#include "engine/cuda/streamed_linear.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/gpu_presence.h"

namespace tandem {
namespace {

struct LinearCase {
  int rows, in, out;
  bool norm, gated, add, bias, is_float;
};

// Needs no device: a block's shared memory holds the input of few rows, and what it does not hold goes to cuBLAS.
TEST(SkinnyLinearTest, TakesWhatFitsInAMultiprocessor) {
  const Bf16 norm[1] = {};
  const auto is_skinny = [&](int rows, int in, bool gated) {
    SkinnyLinearArguments a;
    a.norm = norm;
    a.is_gated = gated;
    a.rows = rows, a.in_features = in, a.out_features = 4096;
    return IsSkinny(a);
  };
  EXPECT_TRUE(is_skinny(16, 4096, true));
  EXPECT_TRUE(is_skinny(8, 8192, true));
  // With the sums of a gated tile these are over the 227 KB that a block may have.
  for (const auto& [rows, in] : {std::pair{16, 6144}, {15, 6656}, {14, 7168}, {12, 8192}}) {
    EXPECT_FALSE(is_skinny(rows, in, true)) << rows << " rows of " << in;
  }
  EXPECT_FALSE(is_skinny(17, 512, false));
  EXPECT_FALSE(is_skinny(1, 500, false));
}

class LinearTest : public CudaKernelsTest {
 protected:
  void ExpectThatOfTheHost(const LinearCase& c, bool is_streamed);
};

void LinearTest::ExpectThatOfTheHost(const LinearCase& c, bool is_streamed) {
  SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
  const int columns = c.gated ? c.out / 2 : c.out;
  Both<Bf16> weight(Random(size_t(c.out) * c.in, 1 / std::sqrt(float(c.in)))), in(Random(size_t(c.rows) * c.in)),
      norm(Random(c.in)), bias(Random(c.out)), out(Random(size_t(c.rows) * columns));
  Both<float> floats(std::vector<float>(size_t(c.rows) * columns, 1e9f));
  SkinnyLinearArguments a;
  a.weight = weight.device();
  a.in = in.device();
  if (c.norm) a.norm = norm.device();
  if (c.bias) a.bias = bias.device();
  a.epsilon = 1e-5f;
  a.out = c.is_float ? static_cast<void*>(floats.device()) : out.device();
  a.is_float = c.is_float;
  a.add = c.add;
  a.is_gated = c.gated;
  a.rows = c.rows;
  a.out_features = c.out;
  a.in_features = c.in;
  if (is_streamed) {
    ASSERT_TRUE(IsStreamed(a, compute_major_));
    Check(LaunchStreamedLinear(a, multiprocessors_, nullptr));
  } else {
    ASSERT_TRUE(IsSkinny(a));
    Check(LaunchSkinnyLinear(a, multiprocessors_, nullptr));
  }
  Finish();

  std::vector<double> wanted;
  for (int row = 0; row < c.rows; ++row) {
    double squares = 0;
    for (int k = 0; k < c.in; ++k) squares += std::pow(Value(in.host[size_t(row) * c.in + k]), 2);
    // Rounded as the kernel does.
    std::vector<double> x(c.in);
    for (int k = 0; k < c.in; ++k) {
      x[k] = Value(in.host[size_t(row) * c.in + k]);
      if (!c.norm) continue;
      x[k] = Value(__float2bfloat16(static_cast<float>(x[k] * Value(norm.host[k])))) / std::sqrt(squares / c.in + 1e-5);
    }
    const auto dot = [&](int feature) {
      double sum = 0;
      for (int k = 0; k < c.in; ++k) sum += x[k] * Value(weight.host[size_t(feature) * c.in + k]);
      return sum;
    };
    for (int column = 0; column < columns; ++column) {
      double value = dot(column);
      if (c.gated) value = value / (1 + std::exp(-value)) * dot(columns + column);
      if (c.bias) value += Value(bias.host[column]);
      if (c.add) value += Value(out.host[size_t(row) * columns + column]);
      wanted.push_back(value);
    }
  }
  if (c.is_float) {
    ExpectNear(floats.Read(), wanted, 1e-4, "floats");
  } else {
    ExpectNear(out.Read(), wanted, 0.01, "out");
  }
}

TEST_F(LinearTest, SkinnyIsThatOfTheHost) {
  std::vector<LinearCase> cases;
  for (int rows : {1, 2, 3, 7, 8, 9, 13, 16}) {
    cases.push_back({rows, 512, 256, true, false, false, false, false});
    cases.push_back({rows, 96, 304, false, false, false, false, true});
    cases.push_back({rows, 1024, 4096, true, true, false, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false, false});
    cases.push_back({rows, 224, 96, false, false, true, true, false});
    cases.push_back({rows, 576, 2112, true, false, false, true, false});
    cases.push_back({rows, 4096, 6144, true, false, false, false, false});
  }
  for (const LinearCase& c : cases) ExpectThatOfTheHost(c, /*is_streamed=*/false);
}

TEST_F(LinearTest, StreamedIsThatOfTheHost) {
  if (compute_major_ != 9) GTEST_SKIP() << "the kernel is for Hopper";
  std::vector<LinearCase> cases;
  for (int rows : {1, 7, 8, 9, 16, 17, 25, 32}) {
    cases.push_back({rows, 512, 256, false, false, false, false, false});
    cases.push_back({rows, 104, 312, false, false, false, true, true});  // No part is whole.
    cases.push_back({rows, 1024, 4096, false, true, false, false, false});
    cases.push_back({rows, 200, 1234 * 2, false, true, false, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false, false});  // The ring goes round often.
    cases.push_back({rows, 224, 17, false, false, true, true, false});
    cases.push_back({rows, 64, 33000, false, false, false, false, true});  // Several tiles for each block.
    cases.push_back({rows, 4096, 768, false, false, false, false, false});
  }
  for (const LinearCase& c : cases) ExpectThatOfTheHost(c, /*is_streamed=*/true);
}

// A matrix of FP8 with random codes and scales, and what it stands for.
struct Float8Matrix {
  Float8Matrix(int out, int in, std::mt19937& random)
      : codes(std::vector<uint8_t>(size_t(out) * in)),
        scales(std::vector<float>(size_t(out / kFloat8Block) * Float8ScaleStride(in))),
        values(size_t(out) * in) {
    for (float& scale : scales.host) scale = 0.25f + static_cast<float>(random() % 1000) / 1000;
    for (int row = 0; row < out; ++row) {
      for (int column = 0; column < in; ++column) {
        const size_t at = size_t(row) * in + column;
        // All codes but NaN.
        codes.host[at] = static_cast<uint8_t>((random() % 2 << 7) | random() % 127);
        values[at] = static_cast<double>(__half2float(__nv_cvt_fp8_to_halfraw(codes.host[at], __NV_E4M3))) *
                     scales.host[row / kFloat8Block * Float8ScaleStride(in) + column / kFloat8Block];
      }
    }
    Check(cudaMemcpy(codes.device(), codes.host.data(), codes.host.size(), cudaMemcpyHostToDevice));
    Check(cudaMemcpy(scales.device(), scales.host.data(), scales.host.size() * 4, cudaMemcpyHostToDevice));
  }
  Float8Weight weight(int in) { return {codes.device(), scales.device(), Float8ScaleStride(in)}; }
  Both<uint8_t> codes;
  Both<float> scales;
  std::vector<double> values;
};

// Needs no device.
TEST(Float8WeightTest, WholeBlocksStayAndTheirScalesAreAsCublasWantsThem) {
  const std::vector<float> table = {1, 2, 3, 4, 5, 6};
  TensorView weight{.name = "w", .dtype = DType::kF8E4M3, .shape = {256, 384}};
  weight.scales = {.dtype = DType::kF32,
                   .data = {reinterpret_cast<const uint8_t*>(table.data()), table.size() * sizeof(float)},
                   .table_columns = 3,
                   .block_rows = 128,
                   .block_columns = 128};
  const ModelConfig dense;
  EXPECT_TRUE(StayFloat8({weight, weight}, dense));
  EXPECT_EQ(Float8Scales({weight, weight}), (std::vector<float>{1, 2, 3, 0, 4, 5, 6, 0, 1, 2, 3, 0, 4, 5, 6, 0}));
  ModelConfig sparse;
  sparse.moe.num_experts = 4;
  EXPECT_FALSE(StayFloat8({weight}, sparse));
  ModelConfig biased;
  biased.qkv_bias = true;
  EXPECT_FALSE(StayFloat8({weight}, biased));
  TensorView cut = weight;  // As a rank has it whose share does not begin with a block.
  cut.scales.first_row = 64;
  EXPECT_FALSE(StayFloat8({weight, cut}, dense));
  TensorView small = weight;
  small.scales.block_rows = small.scales.block_columns = 64;
  EXPECT_FALSE(StayFloat8({small}, dense));
  // One scale for all.
  weight.scales.table_columns = 1;
  weight.scales.block_rows = 256;
  weight.scales.block_columns = 384;
  EXPECT_TRUE(StayFloat8({weight}, dense));
  EXPECT_EQ(Float8Scales({weight}), (std::vector<float>{1, 1, 1, 0, 1, 1, 1, 0}));
}

TEST_F(CudaKernelsTest, SkinnyLinearOfFloat8IsThatOfTheHost) {
  struct Case {
    int rows, in, out;
    bool norm, gated, add;
  };
  std::vector<Case> cases;
  for (int rows : {1, 3, 8, 9, 16}) {
    cases.push_back({rows, 512, 256, true, false, false});
    cases.push_back({rows, 640, 512, true, true, false});
    cases.push_back({rows, 14336, 128, false, false, true});
    cases.push_back({rows, 4096, 1024, true, false, false});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    const int columns = c.gated ? c.out / 2 : c.out;
    Float8Matrix matrix(c.out, c.in, random_);
    // Sums of about 1, so that a gate is neither open nor shut.
    Both<Bf16> in(Random(size_t(c.rows) * c.in, 0.01f / std::sqrt(float(c.in)))), out(Random(size_t(c.rows) * columns)),
        norm(Random(c.in, 0.01f / std::sqrt(float(c.in))));
    SkinnyLinearArguments a;
    a.float8 = matrix.weight(c.in);
    a.in = in.device();
    if (c.norm) a.norm = norm.device();
    a.epsilon = 1e-12f;
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
      double squares = 0;
      for (int k = 0; k < c.in; ++k) squares += std::pow(Value(in.host[size_t(row) * c.in + k]), 2);
      std::vector<double> x(c.in);
      for (int k = 0; k < c.in; ++k) {
        x[k] = Value(in.host[size_t(row) * c.in + k]);
        if (!c.norm) continue;
        x[k] =
            Value(__float2bfloat16(static_cast<float>(x[k] * Value(norm.host[k])))) / std::sqrt(squares / c.in + 1e-12);
      }
      const auto dot = [&](int feature) {
        double sum = 0;
        for (int k = 0; k < c.in; ++k) sum += x[k] * matrix.values[size_t(feature) * c.in + k];
        return sum;
      };
      for (int column = 0; column < columns; ++column) {
        double value = dot(column);
        if (c.gated) value = value / (1 + std::exp(-value)) * dot(columns + column);
        if (c.add) value += Value(out.host[size_t(row) * columns + column]);
        wanted.push_back(value);
      }
    }
    ExpectNear(out.Read(), wanted, 0.01, "out");
  }
}

TEST_F(CudaKernelsTest, RowsAreQuantisedByTheirBlocks) {
  const int rows = 5, padded = 8, columns = 384;
  Both<Bf16> in(Random(size_t(rows) * columns));
  Both<uint8_t> codes(std::vector<uint8_t>(size_t(padded) * columns, 77));
  Both<float> scales(std::vector<float>(size_t(padded) * columns / kFloat8Block, -1));
  Check(LaunchQuantiseRows(in.device(), rows, padded, columns, codes.device(), scales.device(), nullptr));
  Finish();
  const std::vector<uint8_t> got = codes.Read();
  const std::vector<float> factors = scales.Read();
  for (int row = 0; row < padded; ++row) {
    for (int block = 0; block < columns / kFloat8Block; ++block) {
      float largest = 1e-4f;
      for (int i = 0; i < kFloat8Block && row < rows; ++i) {
        largest = std::max(largest, std::abs(float(Value(in.host[size_t(row) * columns + block * kFloat8Block + i]))));
      }
      const float factor = factors[size_t(block) * padded + row];
      EXPECT_FLOAT_EQ(factor, largest / 448);
      for (int i = 0; i < kFloat8Block; ++i) {
        const size_t at = size_t(row) * columns + block * kFloat8Block + i;
        const double value = row < rows ? Value(in.host[at]) : 0;
        const double code = __half2float(__nv_cvt_fp8_to_halfraw(got[at], __NV_E4M3));
        // Half a step of three bits of mantissa, or of the subnormal ones.
        EXPECT_NEAR(code * factor, value, std::abs(value) / 16 + factor * 0x1p-10 * 1.01) << row << " " << i;
      }
    }
  }
}

TEST_F(CudaKernelsTest, LinearOfFloat8ByCublasIsThatOfTheHost) {
  auto cublas = CublasLinear::Create(nullptr);
  ASSERT_TRUE(cublas.ok()) << cublas.status();
  struct Case {
    int rows, in, out;
    bool add;
  };
  for (const Case& c :
       {Case{64, 256, 128, false}, {64, 512, 384, true}, {128, 640, 256, false}, {192, 1408, 512, true}}) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    Float8Matrix matrix(c.out, c.in, random_);
    Both<Bf16> in(Random(size_t(c.rows) * c.in)), out(Random(size_t(c.rows) * c.out, 100));
    Both<uint8_t> codes(std::vector<uint8_t>(size_t(c.rows) * c.in));
    Both<float> scales(std::vector<float>(size_t(c.rows) * c.in / kFloat8Block));
    Check(LaunchQuantiseRows(in.device(), c.rows, c.rows, c.in, codes.device(), scales.device(), nullptr));
    LinearCall call;
    call.float8 = matrix.weight(c.in);
    call.codes = codes.device();
    call.scales = scales.device();
    call.out = out.device();
    call.add = c.add;
    call.rows = c.rows;
    call.out_features = c.out;
    call.in_features = c.in;
    (*cublas)->Run(call);
    Finish();
    const std::vector<uint8_t> got = codes.Read();
    const std::vector<float> factors = scales.Read();
    std::vector<double> x(size_t(c.rows) * c.in), wanted;
    for (size_t at = 0; at < x.size(); ++at) {
      x[at] = static_cast<double>(__half2float(__nv_cvt_fp8_to_halfraw(got[at], __NV_E4M3))) *
              factors[at % c.in / kFloat8Block * c.rows + at / c.in];
    }
    for (int row = 0; row < c.rows; ++row) {
      for (int feature = 0; feature < c.out; ++feature) {
        double sum = c.add ? Value(out.host[size_t(row) * c.out + feature]) : 0;
        for (int k = 0; k < c.in; ++k) sum += x[size_t(row) * c.in + k] * matrix.values[size_t(feature) * c.in + k];
        wanted.push_back(sum);
      }
    }
    ExpectNear(out.Read(), wanted, 0.01, "out");
  }
}

TEST_F(CudaKernelsTest, OnlyAllowedTokensAreChosen) {
  const int rows = 5;
  for (int columns : {1000, 1003}) {
    const int mask_words = (columns + 31) / 32;
    std::vector<float> logits(size_t(columns) * rows);
    std::normal_distribution<float> normal(0, 3);
    for (float& value : logits) value = normal(random_);
    logits[4 * columns + 17] = NAN;
    // Rows 1, 3 and 4: one token in 50, in row 3 one alone.
    const std::vector<int32_t> masked_rows = {1, 3, 4};
    std::vector<uint32_t> masks(size_t(mask_words) * 3);
    const auto allow = [&](int mask, int token) { masks[mask * mask_words + token / 32] |= 1u << (token % 32); };
    for (int token = 7; token < columns; token += 50) allow(0, token), allow(2, token);
    allow(1, columns - 1);
    Both<float> device_logits(logits);
    Both<int32_t> device_rows(masked_rows), tokens(std::vector<int32_t>(rows, -7)),
        results(std::vector<int32_t>(rows, -7));
    Both<uint32_t> device_masks(masks);
    Check(LaunchMask(device_logits.device(), columns, device_rows.device(), device_masks.device(), mask_words, 3,
                     nullptr));
    int best = 7;
    for (int token = 7; token < columns; token += 50) {
      if (logits[columns + token] > logits[columns + best]) best = token;
    }
    const std::vector<SampleSettings> ways = {{},
                                              {.temperature = 2},
                                              {.temperature = 1, .top_k = 100},
                                              {.temperature = 1, .top_p = 0.9f},
                                              {.temperature = 1, .min_p = 0.05f}};
    for (const SampleSettings& way : ways) {
      for (int draw = 0; draw < 200; ++draw) {
        std::vector<SampleSettings> settings(rows, way);
        for (SampleSettings& s : settings) s.seed = 3, s.index = draw;
        Both<SampleSettings> device_settings(settings);
        Check(LaunchSample(device_logits.device(), rows, columns, device_settings.device(), tokens.device(),
                           results.device(), nullptr));
        Finish();
        const std::vector<int32_t> got = results.Read();
        ASSERT_EQ(got[1] % 50, 7);
        if (way.temperature == 0) {
          ASSERT_EQ(got[1], best);
        }
        ASSERT_EQ(got[3], columns - 1);
        ASSERT_EQ(got[4], -1) << "what is no number stays none";
      }
    }
    const std::vector<float> after = device_logits.Read();
    for (int row : {0, 2}) {
      EXPECT_TRUE(std::equal(after.begin() + row * columns, after.begin() + (row + 1) * columns,
                             logits.begin() + row * columns));
    }
  }
}

TEST_F(CudaKernelsTest, SamplingFiltersAndDrawsAsTheSettingsSay) {
  const int columns = 1000, rows = 6;
  std::vector<float> logits(size_t(columns) * rows);
  std::normal_distribution<float> normal(0, 2);
  for (float& value : logits) value = normal(random_);
  logits[3 * columns + 17] = NAN;
  Both<float> device_logits(logits);
  Both<int32_t> tokens(std::vector<int32_t>(rows, -7)), results(std::vector<int32_t>(rows, -7));
  std::vector<std::vector<int>> counts(rows, std::vector<int>(columns));
  const int draws = 4000;
  for (int draw = 0; draw < draws; ++draw) {
    std::vector<SampleSettings> settings(rows);
    settings[1] = {.temperature = 1.3f, .top_k = 20};
    settings[2] = {.temperature = 0.8f, .top_p = 0.7f};
    settings[3] = {.temperature = 1};
    settings[4] = {.temperature = 1.1f, .min_p = 0.2f};
    settings[5] = {.temperature = 1.0f, .top_p = 0.9f, .top_k = 30};
    for (SampleSettings& s : settings) s.seed = 99, s.index = draw;
    Both<SampleSettings> device_settings(settings);
    Check(LaunchSample(device_logits.device(), rows, columns, device_settings.device(), tokens.device(),
                       results.device(), nullptr));
    Finish();
    const std::vector<int32_t> got = results.Read();
    EXPECT_EQ(got[3], -1);
    for (int row = 0; row < rows; ++row) {
      if (row != 3) ++counts[row][got[row]];
    }
  }
  // Frequencies against the probabilities of the filtered distribution.
  for (int row : {0, 1, 2, 4, 5}) {
    std::vector<int> order(columns);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + size_t(row) * columns;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
    const double temperature = row == 1 ? 1.3 : row == 2 ? 0.8 : row == 4 ? 1.1 : 1.0;
    size_t keep = row == 0 ? 1 : row == 1 ? 20 : row == 5 ? 30 : columns;
    std::vector<double> weights;
    for (size_t i = 0; i < keep; ++i) weights.push_back(std::exp((values[order[i]] - values[order[0]]) / temperature));
    const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double top_p = row == 2 ? 0.7 : row == 5 ? 0.9 : 2;
    double kept = 0;
    size_t count = 0;
    while (count < weights.size() && (row != 4 || weights[count] >= 0.2)) {
      kept += weights[count++];
      if (kept >= top_p * all) break;
    }
    int inside = 0;
    double distance = 0;
    for (size_t i = 0; i < count; ++i) {
      inside += counts[row][order[i]];
      distance += std::abs(counts[row][order[i]] / double(draws) - weights[i] / kept) / 2;
    }
    EXPECT_EQ(inside, draws) << "row " << row;
    EXPECT_LT(distance, 0.08) << "row " << row << ", " << count << " candidates";
  }
}

TEST_F(CudaKernelsTest, ExpertsAreThoseOfTheHost) {
  const int rows = 5, hidden = 96, width = 40, experts = 12, chosen = 3;
  Both<Bf16> in(Random(rows * hidden)), out(Random(rows * hidden));
  std::vector<std::unique_ptr<Both<Bf16>>> gate_up, down;
  std::vector<const Bf16*> gate_up_pointers, down_pointers;
  for (int e = 0; e < experts; ++e) {
    gate_up.push_back(std::make_unique<Both<Bf16>>(Random(2 * width * hidden, 0.1f)));
    down.push_back(std::make_unique<Both<Bf16>>(Random(hidden * width, 0.1f)));
    gate_up_pointers.push_back(gate_up.back()->device());
    down_pointers.push_back(down.back()->device());
  }
  std::vector<float> logits;
  std::normal_distribution<float> normal(0, 1);
  for (int i = 0; i < rows * experts; ++i) logits.push_back(normal(random_));
  Both<float> router(logits), weights(std::vector<float>(rows * chosen));
  Both<const Bf16*> gate_up_table(gate_up_pointers), down_table(down_pointers);
  Both<int32_t> choices(std::vector<int32_t>(rows * chosen));
  Both<Bf16> activated(std::vector<Bf16>(rows * chosen * width));
  MoeArguments a;
  a.in = in.device();
  a.router_logits = router.device();
  a.gate_up = gate_up_table.device();
  a.down = down_table.device();
  a.rows = rows, a.hidden = hidden, a.width = width, a.num_experts = experts, a.experts_per_token = chosen;
  a.normalise_top_k = true;
  a.chosen = choices.device();
  a.weights = weights.device();
  a.activated = activated.device();
  a.out = out.device();
  Check(LaunchMoe(a, nullptr));
  Finish();
  std::vector<double> wanted;
  for (int row = 0; row < rows; ++row) {
    std::vector<int> order(experts);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + row * experts;
    std::sort(order.begin(), order.end(), [&](int x, int y) { return values[x] > values[y]; });
    double sum = 0;
    for (int k = 0; k < chosen; ++k) sum += std::exp(values[order[k]]);
    std::vector<double> total(hidden);
    for (int c = 0; c < hidden; ++c) total[c] = Value(out.host[row * hidden + c]);
    for (int k = 0; k < chosen; ++k) {
      const int e = order[k];
      std::vector<double> h(width);
      for (int i = 0; i < width; ++i) {
        double gate = 0, up = 0;
        for (int c = 0; c < hidden; ++c) {
          gate += Value(gate_up[e]->host[i * hidden + c]) * Value(in.host[row * hidden + c]);
          up += Value(gate_up[e]->host[(width + i) * hidden + c]) * Value(in.host[row * hidden + c]);
        }
        h[i] = Value(__float2bfloat16(float(gate / (1 + std::exp(-gate)) * up)));
      }
      for (int c = 0; c < hidden; ++c) {
        double dot = 0;
        for (int i = 0; i < width; ++i) dot += h[i] * Value(down[e]->host[c * width + i]);
        total[c] += std::exp(values[e]) / sum * dot;
      }
    }
    wanted.insert(wanted.end(), total.begin(), total.end());
  }
  ExpectNear(out.Read(), wanted, 0.01, "out");
}

}  // namespace
}  // namespace tandem
