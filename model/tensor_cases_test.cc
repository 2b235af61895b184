// Quantised blocks against what the `gguf` library makes of them (tests/golden/quantised).

#include <boost/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "model/tensor.h"
#include "tests/support/golden_file.h"

namespace tandem {
namespace {

class QuantisedBlocks : public testing::TestWithParam<DType> {};

TEST_P(QuantisedBlocks, BecomeTheValuesOfTheReferenceLibrary) {
  std::ifstream file(SourcePath("tests/golden/quantised/cases.json"));
  std::stringstream text;
  text << file.rdbuf();
  const boost::json::value cases = boost::json::parse(text.str());
  const boost::json::object& wanted = cases.at(std::string(DTypeName(GetParam()))).as_object();
  const std::string blocks = absl::HexStringToBytes(std::string(wanted.at("blocks").as_string()));
  const std::string value_bytes = absl::HexStringToBytes(std::string(wanted.at("values").as_string()));
  std::vector<float> values(value_bytes.size() / sizeof(float));
  ASSERT_EQ(values.size(), 512);
  std::memcpy(values.data(), value_bytes.data(), value_bytes.size());

  TensorView tensor{"w", GetParam(), {1, 512}, {reinterpret_cast<const uint8_t*>(blocks.data()), blocks.size()}};
  std::vector<float> got(values.size());
  DequantizeRow(tensor, 0, 512, got.data());
  // The library may round in another order.
  float largest = 0;
  for (float value : values) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], values[i], 1e-6 * largest) << "element " << i;
}

INSTANTIATE_TEST_SUITE_P(Types, QuantisedBlocks,
                         testing::Values(DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                                         DType::kQ4_K, DType::kQ5_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace tandem
