#include "model/quantised_weights.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/safetensors.h"
#include "model/weight_shard.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// By the definition of OCP 8-bit floating point, E4M3.
float F8(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(bits & 128 ? -value : value);
}

class QuantisedWeightsTest : public testing::Test {
 protected:
  // The joined weights of what was added to writer_.
  absl::StatusOr<std::vector<TensorView>> Join(const std::string& config = "{}") {
    bytes_ = writer_.Bytes();
    auto weights = QuantisedWeights::OfConfig(config);
    if (!weights.ok()) return weights.status();
    auto tensors = SafetensorsFile::Parse({reinterpret_cast<const uint8_t*>(bytes_.data()), bytes_.size()});
    EXPECT_THAT(tensors, IsOk());
    for (const TensorView& tensor : *tensors) {
      if (!weights->Take(tensor)) left_.push_back(tensor.name);
    }
    return weights->Join();
  }
  static std::vector<float> Row(const TensorView& tensor, int64_t row) {
    std::vector<float> values(tensor.columns());
    DequantizeRow(tensor, row, tensor.columns(), values.data());
    return values;
  }
  SafetensorsWriter writer_;
  std::string bytes_;
  std::vector<std::string> left_;  // No part of a quantised weight.
};

TEST_F(QuantisedWeightsTest, Float8WithBlocksOfDeepSeek) {
  std::vector<uint8_t> codes(3 * 5);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(17 * i + 3);
  writer_.Add("a.weight", "F8_E4M3", {3, 5}, codes);
  writer_.Add("a.weight_scale_inv", "F32", {2, 3}, std::vector<float>{1, 2, 4, 8, 16, 32});
  writer_.Add("norm.weight", "F32", {2}, std::vector<float>{1, 2});
  ASSERT_OK_AND_ASSIGN(const auto weights,
                       Join(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}})"));
  ASSERT_EQ(weights.size(), 1);
  EXPECT_EQ(weights[0].name, "a.weight");
  EXPECT_THAT(weights[0].shape, ElementsAre(3, 5));
  EXPECT_THAT(Row(weights[0], 1),
              ElementsAre(F8(codes[5]), F8(codes[6]), 2 * F8(codes[7]), 2 * F8(codes[8]), 4 * F8(codes[9])));
  EXPECT_THAT(Row(weights[0], 2), ElementsAre(8 * F8(codes[10]), 8 * F8(codes[11]), 16 * F8(codes[12]),
                                              16 * F8(codes[13]), 32 * F8(codes[14])));
  EXPECT_THAT(left_, ElementsAre("norm.weight"));
}

TEST_F(QuantisedWeightsTest, EveryCodeOfFloat8) {
  std::vector<uint8_t> codes;
  for (int code = 0; code < 256; ++code) {
    if ((code & 127) != 127) codes.push_back(static_cast<uint8_t>(code));
  }
  writer_.Add("a.weight", "F8_E4M3", {1, 254}, codes);
  writer_.Add("a.weight_scale", "F32", {}, std::vector<float>{0.5f});
  writer_.Add("a.input_scale", "F32", {}, std::vector<float>{7});
  ASSERT_OK_AND_ASSIGN(const auto weights, Join());
  const std::vector<float> row = Row(weights[0], 0);
  for (size_t i = 0; i < codes.size(); ++i) EXPECT_EQ(row[i], 0.5f * F8(codes[i])) << int{codes[i]};
  EXPECT_EQ(row[126], 224);  // 448, the largest.
  EXPECT_THAT(left_, IsEmpty());
}

TEST_F(QuantisedWeightsTest, EightBitIntegersWithAScaleForEachRow) {
  writer_.Add("a.weight", "I8", {2, 3}, std::vector<int8_t>{-128, 0, 127, 1, -1, 2});
  writer_.Add("a.weight_scale", "F32", {2, 1}, std::vector<float>{0.5f, 3});
  ASSERT_OK_AND_ASSIGN(const auto weights, Join());
  EXPECT_THAT(Row(weights[0], 0), ElementsAre(-64, 0, 63.5f));
  EXPECT_THAT(Row(weights[0], 1), ElementsAre(3, -3, 6));
}

TEST_F(QuantisedWeightsTest, FourBitIntegersWithAScaleForEachGroup) {
  writer_.Add("a.weight_packed", "I32", {1, 2}, std::vector<uint32_t>{0x76543210, 0xfedcba98});
  writer_.Add("a.weight_scale", "BF16", {1, 4}, std::vector<uint16_t>{0x3f80, 0x4000, 0x4040, 0x4080});  // 1 to 4.
  writer_.Add("a.weight_shape", "I64", {2}, std::vector<int64_t>{1, 16});
  ASSERT_OK_AND_ASSIGN(const auto weights, Join());
  EXPECT_THAT(Row(weights[0], 0), ElementsAre(-8, -7, -6, -5, 2 * -4, 2 * -3, 2 * -2, 2 * -1, 0, 3 * 1, 3 * 2, 3 * 3,
                                              4 * 4, 4 * 5, 4 * 6, 4 * 7));
}

TEST_F(QuantisedWeightsTest, FourBitFloatsOfModelOpt) {
  std::vector<uint8_t> codes(16, 0);
  for (int i = 0; i < 8; ++i) codes[i] = static_cast<uint8_t>(2 * i | (2 * i + 1) << 4);  // All 16, in order.
  codes[8] = 0x71;
  writer_.Add("a.weight", "U8", {1, 16}, codes);
  writer_.Add("a.weight_scale", "F8_E4M3", {1, 2}, std::vector<uint8_t>{0x38, 0x40});  // 1 and 2.
  writer_.Add("a.weight_scale_2", "F32", {}, std::vector<float>{0.25f});
  ASSERT_OK_AND_ASSIGN(const auto weights, Join());
  EXPECT_THAT(weights[0].shape, ElementsAre(1, 32));
  const std::vector<float> row = Row(weights[0], 0);
  const float magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(row[i], (i < 8 ? 0.25f : -0.25f) * magnitudes[i % 8]) << i;
  EXPECT_EQ(row[16], 0.25f);  // 0.5 * 2 * 0.25
  EXPECT_EQ(row[17], 3);      // 6 * 2 * 0.25
}

TEST_F(QuantisedWeightsTest, FourBitFloatsOfCompressedTensorsDivideByTheGlobalScale) {
  writer_.Add("a.weight_packed", "U8", {1, 8}, std::vector<uint8_t>(8, 0x22));
  writer_.Add("a.weight_scale", "F8_E4M3", {1, 1}, std::vector<uint8_t>{0x40});
  writer_.Add("a.weight_global_scale", "F32", {1}, std::vector<float>{8});
  ASSERT_OK_AND_ASSIGN(const auto weights, Join());
  EXPECT_EQ(Row(weights[0], 0)[0], 0.25f);
}

TEST_F(QuantisedWeightsTest, CutsFindTheirScales) {
  std::vector<uint8_t> codes(6 * 8);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(5 * i);
  writer_.Add("a.weight", "F8_E4M3", {6, 8}, codes);
  writer_.Add("a.weight_scale_inv", "F32", {2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6});  // Blocks of 4 x 3.
  ASSERT_OK_AND_ASSIGN(const auto weights,
                       Join(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}})"));
  for (int rank = 0; rank < 2; ++rank) {
    std::vector<uint8_t> storage;
    const TensorView rows = ShardRows(weights[0], {rank, 2}), columns = ShardColumns(weights[0], {rank, 2}, storage);
    for (int row = 0; row < 3; ++row) EXPECT_EQ(Row(rows, row), Row(weights[0], 3 * rank + row));
    for (int row = 0; row < 6; ++row) {
      const std::vector<float> whole = Row(weights[0], row);
      EXPECT_EQ(Row(columns, row), std::vector<float>(whole.begin() + 4 * rank, whole.begin() + 4 * rank + 4));
    }
  }
}

TEST_F(QuantisedWeightsTest, ScalesThatFitNowhereAreAnError) {
  writer_.Add("a.weight", "F8_E4M3", {6, 8}, std::vector<uint8_t>(48));
  writer_.Add("a.weight_scale", "F32", {4}, std::vector<float>(4));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a.weight_scale is F32 [4], which is "
                                                                             "neither one scale for a.weight [6, 8]")));
}

TEST_F(QuantisedWeightsTest, ValuesWithoutScalesAreAnError) {
  writer_.Add("a.weight", "F8_E4M3", {2, 2}, std::vector<uint8_t>(4));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight a: F8_E4M3 [2, 2] has no scale")));
}

TEST_F(QuantisedWeightsTest, ScalesWithoutValuesAreAnError) {
  writer_.Add("a.weight_scale", "F32", {1}, std::vector<float>(1));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("there are scales, and no values")));
}

TEST_F(QuantisedWeightsTest, EightBitsPackedAreNotTakenForFour) {
  writer_.Add("a.weight_packed", "I32", {1, 2}, std::vector<uint32_t>(2));
  writer_.Add("a.weight_scale", "F32", {1}, std::vector<float>(1));
  writer_.Add("a.weight_shape", "I64", {2}, std::vector<int64_t>{1, 8});
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight_shape is [1, 8]")));
}

TEST_F(QuantisedWeightsTest, ZeroPointsAreNotRead) {
  writer_.Add("a.weight", "I8", {1, 2}, std::vector<int8_t>(2));
  writer_.Add("a.weight_scale", "F32", {1}, std::vector<float>(1));
  writer_.Add("a.weight_zero_point", "I8", {1}, std::vector<int8_t>(1));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("zero points")));
}

TEST_F(QuantisedWeightsTest, ScalesThatAreNoNumbersAreNamed) {
  writer_.Add("a.weight", "I8", {2, 2}, std::vector<int8_t>(4));
  writer_.Add("a.weight_scale", "F32", {2}, std::vector<float>{1, NAN});
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a.weight_scale has values that are no "
                                                                             "finite numbers")));
}

TEST_F(QuantisedWeightsTest, ScalesOfFloatsAreAnError) {
  writer_.Add("a.weight", "F32", {1, 2}, std::vector<float>(2));
  writer_.Add("a.weight_scale", "F32", {1}, std::vector<float>(1));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no codes but floats")));
}

TEST_F(QuantisedWeightsTest, PartsThatAreNotKnownAreNamed) {
  writer_.Add("a.pre_quant_scale", "F32", {2}, std::vector<float>(2));
  writer_.Add("a.weight", "I8", {1, 2}, std::vector<int8_t>(2));
  writer_.Add("a.weight_scale", "F32", {1}, std::vector<float>(1));
  EXPECT_THAT(Join(), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("not read: a.pre_quant_scale")));
}

TEST_F(QuantisedWeightsTest, OtherMethodsAreNamed) {
  EXPECT_THAT(Join(R"({"quantization_config": {"quant_method": "gptq"}})"),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("quantization_config.quant_method: gptq")));
  EXPECT_THAT(Join(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 2]}})"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight_block_size")));
}

}  // namespace
}  // namespace tandem
