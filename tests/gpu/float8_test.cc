// Layers of FP8 against sums in double precision on the host, on random codes and scales.

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/cuda/cublas_linear.h"
#include "engine/cuda/float8_kernels.h"
#include "engine/cuda/float8_weight.h"
#include "engine/cuda/skinny_linear.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/linear_reference.h"

namespace tandem {
namespace {

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

using Float8Test = CudaKernelsTest;

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

TEST_F(Float8Test, SkinnyLinearOfFloat8IsThatOfTheHost) {
  std::vector<LinearCase> cases;
  for (int rows : {1, 3, 8, 9, 16}) {
    cases.push_back({rows, 512, 256, true, false, false});
    cases.push_back({rows, 640, 512, true, true, false});
    cases.push_back({rows, 14336, 128, false, false, true});
    cases.push_back({rows, 4096, 1024, true, false, false});
  }
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    Float8Matrix matrix(c.out, c.in, random_);
    // Sums of about 1, so that a gate is neither open nor shut.
    const float small = 0.01f / std::sqrt(float(c.in));
    LinearValues values(c, small, small, random_);
    SkinnyLinearArguments a = values.Arguments(c);
    a.float8 = matrix.weight(c.in);
    ASSERT_TRUE(IsSkinny(a));
    Check(LaunchSkinnyLinear(a, multiprocessors_, nullptr));
    Finish();
    values.Expect(c, matrix.values);
  }
}

TEST_F(Float8Test, RowsAreQuantisedByTheirBlocks) {
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

TEST_F(Float8Test, LinearOfFloat8ByCublasIsThatOfTheHost) {
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

}  // namespace
}  // namespace tandem
