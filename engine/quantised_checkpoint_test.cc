// Checkpoints with weights of few bits beside ones with the values that those stand for; with TANDEM_TEST_DEVICE=cuda
// on a GPU.

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
#include "tests/support/ranked_engine.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

// Two folders with the tiny Llama's config, but a feed-forward width that all formats have a form for on GPUs: one has
// its linear layers in a format of few bits, with random codes and scales, the other one the same in F32.
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
  static constexpr int kBlock = 64, kTinyWidth = 320, kWidth = 384;
  float Scale() { return 0.002f * static_cast<float>(1 + random_() % 8); }

  void AddLinear(TensorView tensor, SafetensorsWriter& few, SafetensorsWriter& f32) {
    for (int64_t& size : tensor.shape) size = size == kTinyWidth ? kWidth : size;
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
    } else if (format_ == "int4" || format_ == "nvfp4") {
      AddFourBits(tensor, name, few, values);
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

  void AddFourBits(const TensorView& tensor, const std::string& name, SafetensorsWriter& few,
                   std::vector<float>& values) {
    const bool is_float = format_ == "nvfp4";
    const int64_t rows = tensor.shape[0], columns = tensor.shape[1], group = is_float ? 16 : 32;
    std::vector<uint8_t> codes(rows * columns / 2);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_());
    std::vector<uint8_t> table(rows * columns / group * (is_float ? 1 : 2));
    for (size_t i = 0; i < table.size(); ++i) {
      table[i] = is_float     ? static_cast<uint8_t>(0x20 + random_() % 0x20)  // 0.125 to 1.9.
                 : i % 2 == 1 ? static_cast<uint8_t>(0x3b)                     // 0.002 to 0.03.
                              : static_cast<uint8_t>(random_());
    }
    TensorView view{.dtype = is_float ? DType::kF4E2M1 : DType::kI4, .shape = {rows, columns}, .data = codes};
    view.scales = {.dtype = is_float ? DType::kF8E4M3 : DType::kBF16,
                   .data = table,
                   .table_columns = columns / group,
                   .block_columns = group,
                   .factor = is_float ? 0.01f : 1.0f};
    for (int64_t row = 0; row < rows; ++row) DequantizeRow(view, row, columns, values.data() + row * columns);
    if (is_float) {
      few.Add(tensor.name, "U8", {rows, columns / 2}, codes);
      few.Add(name + ".weight_scale", "F8_E4M3", {rows, columns / group}, table);
      few.Add(name + ".weight_scale_2", "F32", {1}, std::vector<float>{0.01f});
    } else {
      few.Add(name + ".weight_packed", "I32", {rows, columns / 8}, codes);
      few.Add(name + ".weight_shape", "I64", {2}, std::vector<int64_t>{rows, columns});
      few.Add(name + ".weight_scale", "BF16", {rows, columns / group}, table);
    }
  }

  void AddToConfig() {
    std::ifstream in(few() + "/config.json");
    const std::string config = absl::StrReplaceAll(
        std::string((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>()),
        {{absl::StrCat("\"intermediate_size\": ", kTinyWidth), absl::StrCat("\"intermediate_size\": ", kWidth)}});
    std::ofstream(f32() + "/config.json") << config;
    const std::string settings = absl::StrCat("{\n  \"quantization_config\": {\"quant_method\": \"",
                                              format_ == "fp8"     ? "fp8"
                                              : format_ == "nvfp4" ? "modelopt"
                                                                   : "compressed-tensors",
                                              "\", \"weight_block_size\": [", kBlock, ", ", kBlock, "]},");
    std::ofstream(few() + "/config.json") << settings << config.substr(config.find('{') + 1);
  }

  const std::string format_;
  std::string root_;
  std::mt19937 random_{7};
};

class QuantisedCheckpointTest : public testing::TestWithParam<const char*> {};

// The largest difference of log probabilities of tokens that are not hopeless.
double LargestDifference(absl::Span<const float> wanted, absl::Span<const float> got) {
  double largest = wanted.size() == got.size() ? 0 : INFINITY;
  for (size_t token = 0; token < got.size(); ++token) {
    if (const double off = std::abs(got[token] - wanted[token]); wanted[token] > -8 && !(off <= largest)) largest = off;
    if (std::isnan(largest)) break;
  }
  return largest;
}

// Of the token behind a prompt, which is computed as one chunk.
std::vector<float> FirstLogprobs(EngineFixture& fixture, const std::vector<TokenId>& prompt) {
  SequenceRequest request;
  request.id = RequestId(1);
  request.tokens = prompt;
  request.prompt_tokens = static_cast<int>(prompt.size());
  const int vocabulary = fixture.engine().model_config().vocab_size;
  request.sampling = {.max_tokens = 1, .ignore_eos = true, .logprobs = vocabulary};
  EXPECT_THAT(fixture.engine().Add(std::move(request)), IsOk());
  std::vector<float> logprobs(vocabulary);
  for (const SequenceEvent& event : fixture.RunToEnd()) {
    EXPECT_THAT(event.error, IsOk());
    if (!event.token.has_value()) continue;
    for (const TokenLogprob& entry : event.token->top) logprobs[entry.token] = entry.logprob;
  }
  return logprobs;
}

TEST_P(QuantisedCheckpointTest, PromptsOfAllLengthsGiveTheLogitsOfItsValues) {
  const FolderPair folders(GetParam());
  const Precision precision = TestsRunOnGpu() ? Precision::kBf16 : Precision::kFull;
  EngineFixture wanted(folders.f32(), {.precision = precision}), got(folders.few(), {.precision = precision});
  // On a GPU few rows, several passes of few rows, and weights that are widened before.
  for (int length : {3, 16, 20, 40, 48, 60, 130}) {
    std::vector<TokenId> prompt;
    for (int i = 0; i < length; ++i) prompt.push_back(3 + (29 * i + length) % 300);  // No prefix of another.
    const double largest = LargestDifference(FirstLogprobs(wanted, prompt), FirstLogprobs(got, prompt));
    EXPECT_LE(largest, TestsRunOnGpu() ? 0.1 : 0) << length;
  }
}

TEST_P(QuantisedCheckpointTest, GivesTheLogitsOfItsValues) {
  const FolderPair folders(GetParam());
  std::vector<TokenId> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back(3 + 29 * i % 300);
  const std::vector<Precision> precisions = TestsRunOnGpu()
                                                ? std::vector<Precision>{Precision::kBf16}
                                                : std::vector<Precision>{Precision::kFull, Precision::kQuantised};
  for (const Precision precision : precisions) {
    const Engine::Options options = {.precision = precision};
    ASSERT_OK_AND_ASSIGN(const auto wanted, EngineFixture(folders.f32(), options).engine().ScoreAll(tokens));
    ASSERT_OK_AND_ASSIGN(const auto got, EngineFixture(folders.few(), options).engine().ScoreAll(tokens));
    if (precision == Precision::kFull) {
      EXPECT_EQ(got, wanted);
      continue;
    }
    double largest = 0;  // Products are kept in bf16 there.
    for (size_t i = 0; i < got.size(); ++i) largest = std::max(largest, LargestDifference(wanted[i], got[i]));
    EXPECT_LT(largest, 0.1);
    if (!TestsRunOnGpu()) {
      EXPECT_GT(largest, 0);
    }
  }
}

// Ranks have shares of rows and columns, with the scales that belong to them.
TEST_P(QuantisedCheckpointTest, TwoRanksGiveTheLogitsOfOne) {
  if (TestsRunOnGpu() && NumTestGpus() < 2) GTEST_SKIP() << "there are fewer than two GPUs";
  const FolderPair folders(GetParam());
  const Engine::Options options = {.precision = TestsRunOnGpu() ? Precision::kBf16 : Precision::kFull};
  EngineFixture alone(folders.few(), options);
  RankedEngine ranks(folders.few(), options, 2);
  for (int length : {5, 40, 60}) {
    std::vector<TokenId> prompt;
    for (int i = 0; i < length; ++i) prompt.push_back(3 + (29 * i + length) % 300);
    const double largest = LargestDifference(FirstLogprobs(alone, prompt), FirstLogprobs(ranks.first(), prompt));
    EXPECT_LE(largest, TestsRunOnGpu() ? 0.15 : 1e-3) << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantisedCheckpointTest, testing::Values("fp8", "int8", "int4", "nvfp4"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem
