// Checkpoints with weights of few bits beside ones with the values that those stand for.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/safetensors.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/golden_file.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

// Two folders with the tiny Llama's config: one has its linear layers in a format of few bits, with random codes and
// scales, the other one the same in F32.
class FolderPair {
 public:
  explicit FolderPair(const std::string& format) : format_(format) {
    const std::string source = SourcePath("tests/golden/tiny/llama3_f32");
    root_ = absl::StrCat(testing::TempDir(), "/", format, "-", getpid());
    for (const char* name : {"/few", "/f32"}) {
      std::filesystem::create_directories(root_);
      std::filesystem::copy(source, root_ + name, std::filesystem::copy_options::recursive);
    }
    SafetensorsWriter few, f32;
    const auto file = *SafetensorsFile::Open(source + "/model.safetensors");
    for (const TensorView& tensor : file->tensors()) {
      if (absl::StrContains(tensor.name, "_proj.")) {
        AddLinear(tensor, few, f32);
        continue;
      }
      const std::string bytes(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
      few.Add(tensor.name, "F32", tensor.shape, bytes);
      f32.Add(tensor.name, "F32", tensor.shape, bytes);
    }
    few.Write(root_ + "/few/model.safetensors");
    f32.Write(root_ + "/f32/model.safetensors");
    AddToConfig();
  }
  ~FolderPair() { std::filesystem::remove_all(root_); }
  std::string few() const { return root_ + "/few"; }
  std::string f32() const { return root_ + "/f32"; }

 private:
  static constexpr int kBlock = 64;
  float Scale() { return 0.002f * static_cast<float>(1 + random_() % 8); }

  void AddLinear(const TensorView& tensor, SafetensorsWriter& few, SafetensorsWriter& f32) {
    const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
    const std::string name = tensor.name.substr(0, tensor.name.size() - std::string(".weight").size());
    std::vector<float> values(rows * columns);
    if (format_ == "fp8") {
      std::vector<uint8_t> codes(rows * columns);
      const int64_t down = (rows + kBlock - 1) / kBlock, across = (columns + kBlock - 1) / kBlock;
      std::vector<float> scales(down * across);
      for (float& scale : scales) scale = Scale();
      for (int64_t i = 0; i < rows * columns; ++i) {
        codes[i] = static_cast<uint8_t>((random_() % 2 << 7) | random_() % 0x48);  // Up to 4.
        DequantizeRow({.dtype = DType::kF8E4M3, .shape = {1}, .data = absl::MakeConstSpan(&codes[i], 1)}, 0, 1,
                      &values[i]);
        values[i] *= scales[i / columns / kBlock * across + i % columns / kBlock];
      }
      few.Add(tensor.name, "F8_E4M3", tensor.shape, codes);
      few.Add(name + ".weight_scale_inv", "F32", {down, across}, scales);
    } else {
      std::vector<int8_t> codes(rows * columns);
      std::vector<float> scales(rows);
      for (float& scale : scales) scale = 0.02f * Scale();
      for (int64_t i = 0; i < rows * columns; ++i) {
        codes[i] = static_cast<int8_t>(random_() % 255 - 127);
        values[i] = static_cast<float>(codes[i]) * scales[i / columns];
      }
      few.Add(tensor.name, "I8", tensor.shape, codes);
      few.Add(name + ".weight_scale", "F32", {rows, 1}, scales);
    }
    f32.Add(tensor.name, "F32", tensor.shape, values);
  }

  void AddToConfig() {
    std::ifstream in(few() + "/config.json");
    const std::string config((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const std::string settings = absl::StrCat("{\n  \"quantization_config\": {\"quant_method\": \"",
                                              format_ == "fp8" ? "fp8" : "compressed-tensors",
                                              "\", \"weight_block_size\": [", kBlock, ", ", kBlock, "]},");
    std::ofstream(few() + "/config.json") << settings << config.substr(config.find('{') + 1);
  }

  const std::string format_;
  std::string root_;
  std::mt19937 random_{7};
};

class QuantisedCheckpointTest : public testing::TestWithParam<const char*> {};

TEST_P(QuantisedCheckpointTest, GivesTheLogitsOfItsValues) {
  const FolderPair folders(GetParam());
  std::vector<TokenId> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back(3 + 29 * i % 300);
  for (const Precision precision : {Precision::kFull, Precision::kQuantised}) {
    const Engine::Options options = {.precision = precision};
    ASSERT_OK_AND_ASSIGN(const auto wanted, EngineFixture(folders.f32(), options).engine().ScoreAll(tokens));
    ASSERT_OK_AND_ASSIGN(const auto got, EngineFixture(folders.few(), options).engine().ScoreAll(tokens));
    if (precision == Precision::kFull) {
      EXPECT_EQ(got, wanted);
      continue;
    }
    double largest = 0;  // Products are kept in bf16 there.
    for (size_t i = 0; i < got.size(); ++i) {
      for (size_t token = 0; token < got[i].size(); ++token) {
        if (wanted[i][token] > -8) largest = std::max<double>(largest, std::abs(got[i][token] - wanted[i][token]));
      }
    }
    EXPECT_LT(largest, 0.1);
    EXPECT_GT(largest, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantisedCheckpointTest, testing::Values("fp8", "int8"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem
