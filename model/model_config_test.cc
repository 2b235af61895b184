#include "model/model_config.h"

#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kLlama[] =
    R"({"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
  "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,"max_position_embeddings":512,"rms_norm_eps":1e-5,
  "rope_theta":10000.0,"eos_token_id":[1,2]})";

TEST(ModelConfigTest, ReadsLlama) {
  ASSERT_OK_AND_ASSIGN(ModelConfig config, ModelConfig::FromJson(kLlama, ""));
  EXPECT_EQ(config.family, ModelFamily::kLlama);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_THAT(config.eos_tokens, ElementsAre(1, 2));
}

TEST(ModelConfigTest, GenerationConfigsEndTokensGoFirst) {
  ASSERT_OK_AND_ASSIGN(ModelConfig config, ModelConfig::FromJson(kLlama, R"({"eos_token_id": 9})"));
  EXPECT_THAT(config.eos_tokens, ElementsAre(9));
}

TEST(ModelConfigTest, FamiliesBringTheirTraits) {
  ASSERT_OK_AND_ASSIGN(ModelConfig qwen2,
                       ModelConfig::FromJson(absl::StrReplaceAll(kLlama, {{"\"llama\"", "\"qwen2\""}}), ""));
  EXPECT_TRUE(qwen2.qkv_bias);
  ASSERT_OK_AND_ASSIGN(ModelConfig qwen3,
                       ModelConfig::FromJson(absl::StrReplaceAll(kLlama, {{"\"llama\"", "\"qwen3\""}}), ""));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
}

struct BadConfig {
  const char* name;
  const char* from;
  const char* to;
  const char* message;
};

class ModelConfigRefuses : public testing::TestWithParam<BadConfig> {};

TEST_P(ModelConfigRefuses, AndNamesTheKey) {
  const BadConfig& bad = GetParam();
  absl::Status status = ModelConfig::FromJson(absl::StrReplaceAll(kLlama, {{bad.from, bad.to}}), "").status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(bad.message));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, ModelConfigRefuses,
    testing::Values(
        BadConfig{"UnknownFamily", "\"llama\"", "\"mamba\"", "\"mamba\" is unknown"},
        BadConfig{"MissingKey", "\"hidden_size\":64,", "", "hidden_size: is missing"},
        BadConfig{"TextForNumber", "\"hidden_size\":64", "\"hidden_size\":\"64\"",
                  "hidden_size: expected a whole number"},
        BadConfig{"ZeroLayers", "\"num_hidden_layers\":2", "\"num_hidden_layers\":0",
                  "num_hidden_layers: expected a number from 1 to"},
        BadConfig{"ZeroHeads", "\"num_attention_heads\":4", "\"num_attention_heads\":0", "num_attention_heads"},
        BadConfig{"IndivisibleHeads", "\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "no multiple"},
        BadConfig{"HugeVocabulary", "\"vocab_size\":100", "\"vocab_size\":2000000000", "vocab_size: expected"},
        // 30 when cut down to 32 bits.
        BadConfig{"LayersPastAnInt", "\"num_hidden_layers\":2", "\"num_hidden_layers\":4294967326", "got 4294967326"},
        BadConfig{"EosPastAnInt", "[1,2]", "[4294967297]", "eos_token_id"},
        BadConfig{"UnknownRope", "\"rope_theta\":10000.0", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}",
                  "rope_type \"yarn\""},
        BadConfig{"RopeFactor", "\"rope_theta\":10000.0", "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0.5}",
                  "at least 1"},
        BadConfig{"Activation", "\"vocab_size\"", "\"hidden_act\":\"gelu\",\"vocab_size\"", "hidden_act"},
        BadConfig{"SlidingWindow", "\"vocab_size\"", "\"use_sliding_window\":true,\"vocab_size\"",
                  "use_sliding_window"},
        BadConfig{"TextAfterTheEnd", "[1,2]}", "[1,2]} x", "not JSON"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(RopeConfigTest, Llama3ScalingLeavesFastPairsAndSlowsSlowOnes) {
  RopeConfig rope{.theta = 10000, .scaling = RopeConfig::Scaling::kLlama3, .factor = 8, .original_context = 64};
  RopeConfig plain{.theta = 10000};
  std::vector<double> scaled = rope.InverseFrequencies(32), unscaled = plain.InverseFrequencies(32);
  EXPECT_DOUBLE_EQ(scaled.front(), unscaled.front());
  EXPECT_DOUBLE_EQ(scaled.back(), unscaled.back() / 8);
}

TEST(MoeConfigTest, DenseLayersAreNotSparse) {
  MoeConfig moe{.num_experts = 4, .dense_layers = {0}};
  EXPECT_FALSE(moe.IsSparse(0));
  EXPECT_TRUE(moe.IsSparse(1));
  EXPECT_FALSE(MoeConfig().IsSparse(0));
}

TEST(CheckpointTest, FingerprintsTellModelsAndPrecisionsApart) {
  ASSERT_OK_AND_ASSIGN(auto llama, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  ASSERT_OK_AND_ASSIGN(auto again, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  ASSERT_OK_AND_ASSIGN(auto qwen, Checkpoint::Open(SourcePath("tests/golden/tiny/qwen3_bf16")));
  EXPECT_EQ(llama->Fingerprint(Precision::kFull), again->Fingerprint(Precision::kFull));
  EXPECT_NE(llama->Fingerprint(Precision::kFull), llama->Fingerprint(Precision::kQuantised));
  EXPECT_NE(llama->Fingerprint(Precision::kFull), qwen->Fingerprint(Precision::kFull));
}

// A copy of a tiny checkpoint whose config.json has `from` replaced, and more files.
class TinyCopy {
 public:
  TinyCopy(const std::string& from, const std::string& to, const std::string& tokenizer_config = "") {
    std::string pattern = std::filesystem::temp_directory_path() / "tandem-checkpoint-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    const std::filesystem::path source = SourcePath("tests/golden/tiny/llama3_f32");
    std::filesystem::copy(source / "model.safetensors", folder_ / "model.safetensors");
    std::stringstream text;
    text << std::ifstream(source / "config.json").rdbuf();
    std::string config = absl::StrReplaceAll(text.str(), {{from, to}});
    EXPECT_NE(config, text.str());
    std::ofstream(folder_ / "config.json") << config;
    if (!tokenizer_config.empty()) std::ofstream(folder_ / "tokenizer_config.json") << tokenizer_config;
  }
  ~TinyCopy() { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_; }

 private:
  std::filesystem::path folder_;
};

TEST(CheckpointTest, FingerprintsTellConfigsApart) {
  ASSERT_OK_AND_ASSIGN(auto llama, Checkpoint::Open(SourcePath("tests/golden/tiny/llama3_f32")));
  TinyCopy other("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 2e-05");
  ASSERT_OK_AND_ASSIGN(auto changed, Checkpoint::Open(other.path()));
  EXPECT_NE(llama->Fingerprint(Precision::kFull), changed->Fingerprint(Precision::kFull));
}

TEST(CheckpointTest, AWeightThatWouldBeLeftOutIsRefused) {
  TinyCopy shorter("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  EXPECT_THAT(Checkpoint::Open(shorter.path()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("model.layers.1.")));
}

TEST(CheckpointTest, SpecialTokensOfTemplatesComeFromTheTokenizerConfig) {
  TinyCopy copy("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 2e-05",
                R"({"bos_token": "<s>", "eos_token": {"content": "<|eot_id|>", "lstrip": false}})");
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(copy.path()));
  EXPECT_EQ(checkpoint->bos_text(), "<s>");
  EXPECT_EQ(checkpoint->eos_text(), "<|eot_id|>");
}

TEST(CheckpointTest, NamesWhatIsMissing) {
  EXPECT_THAT(Checkpoint::Open("/no/such/model"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/model")));
  EXPECT_THAT(Checkpoint::Open(SourcePath("tests/golden/tiny")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
  ASSERT_OK_AND_ASSIGN(auto qwen, Checkpoint::Open(SourcePath("tests/golden/tiny/qwen3_bf16")));
  EXPECT_THAT(qwen->FindTensor("layers.99.q"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("layers.99.q")));
  EXPECT_THAT(qwen->LoadTokenizer(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tokenizer.json")));
}

}  // namespace
}  // namespace tandem
