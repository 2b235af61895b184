#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/status_macros.h"
#include "model/gguf.h"
#include "model/json_reader.h"

namespace tandem {
namespace {

struct FamilyName {
  ModelFamily family;
  absl::string_view model_type;         // config.json
  absl::string_view gguf_architecture;  // general.architecture
};
constexpr FamilyName kFamilies[] = {
    {ModelFamily::kLlama, "llama", "llama"},
    {ModelFamily::kQwen2, "qwen2", "qwen2"},
    {ModelFamily::kQwen3, "qwen3", "qwen3"},
    {ModelFamily::kQwen3Moe, "qwen3_moe", "qwen3moe"},
};

absl::StatusOr<ModelFamily> FindFamily(absl::string_view name, absl::string_view FamilyName::*field) {
  for (const FamilyName& family : kFamilies) {
    if (family.*field == name) return family.family;
  }
  return absl::UnimplementedError(
      absl::StrCat("model architecture \"", name, "\" is unknown; run are llama, qwen2, qwen3, qwen3_moe"));
}

void ApplyFamilyDefaults(ModelConfig& config) {
  config.qkv_bias |= config.family == ModelFamily::kQwen2;
  config.qk_norm = config.family == ModelFamily::kQwen3 || config.family == ModelFamily::kQwen3Moe;
}

// Newer checkpoints say "rope_parameters" for what was rope_theta and rope_scaling.
absl::Status ReadRope(const JsonReader& json, RopeConfig& rope) {
  ASSIGN_OR_RETURN(rope.theta, json.Number("rope_theta", 10000.0));
  for (absl::string_view key : {"rope_scaling", "rope_parameters"}) {
    const boost::json::value* value = json.Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) return json.Error(key, "expected an object");
    JsonReader scaling(value->as_object(), absl::StrCat(key, "."));
    ASSIGN_OR_RETURN(rope.theta, scaling.Number("rope_theta", rope.theta));
    ASSIGN_OR_RETURN(std::string old_type, scaling.String("type", "default"));
    ASSIGN_OR_RETURN(std::string type, scaling.String("rope_type", old_type));
    if (type == "default") continue;
    ASSIGN_OR_RETURN(rope.factor, scaling.Number("factor"));
    if (rope.factor < 1) return scaling.Error("factor", "must be at least 1");
    if (type == "linear") {
      rope.scaling = RopeConfig::Scaling::kLinear;
    } else if (type == "llama3") {
      rope.scaling = RopeConfig::Scaling::kLlama3;
      ASSIGN_OR_RETURN(rope.low_frequency_factor, scaling.Number("low_freq_factor"));
      ASSIGN_OR_RETURN(rope.high_frequency_factor, scaling.Number("high_freq_factor"));
      ASSIGN_OR_RETURN(rope.original_context, scaling.Number("original_max_position_embeddings"));
      if (rope.high_frequency_factor <= rope.low_frequency_factor) {
        return scaling.Error("high_freq_factor", "must be over low_freq_factor");
      }
    } else {
      return absl::UnimplementedError(absl::StrCat(key, ".rope_type \"", type, "\"; run are default, linear, llama3"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMoe(const JsonReader& json, int num_layers, MoeConfig& moe) {
  ASSIGN_OR_RETURN(moe.num_experts, json.Int("num_experts"));
  ASSIGN_OR_RETURN(moe.experts_per_token, json.Int("num_experts_per_tok"));
  ASSIGN_OR_RETURN(moe.intermediate_size, json.Int("moe_intermediate_size"));
  ASSIGN_OR_RETURN(moe.normalise_top_k, json.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(int64_t step, json.Int("decoder_sparse_step", 1));
  if (step < 1) return json.Error("decoder_sparse_step", "must be at least 1");
  for (int layer = 0; layer < num_layers; ++layer) {
    if ((layer + 1) % step != 0) moe.dense_layers.push_back(layer);
  }
  if (const boost::json::value* dense = json.Find("mlp_only_layers"); dense != nullptr) {
    if (!dense->is_array()) return json.Error("mlp_only_layers", "expected a list");
    for (const boost::json::value& layer : dense->as_array()) {
      if (!layer.is_int64()) return json.Error("mlp_only_layers", "expected whole numbers");
      moe.dense_layers.push_back(static_cast<int>(layer.as_int64()));
    }
  }
  return absl::OkStatus();
}

// eos_token_id is a number or a list of numbers.
absl::Status ReadEos(const JsonReader& json, std::vector<int32_t>& eos) {
  const boost::json::value* value = json.Find("eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  auto add = [&](const boost::json::value& id) {
    if (!id.is_int64()) return json.Error("eos_token_id", "expected whole numbers");
    eos.push_back(static_cast<int32_t>(id.as_int64()));
    return absl::OkStatus();
  };
  if (!value->is_array()) return add(*value);
  for (const boost::json::value& id : value->as_array()) RETURN_IF_ERROR(add(id));
  return absl::OkStatus();
}

}  // namespace

absl::string_view ModelFamilyName(ModelFamily family) {
  for (const FamilyName& name : kFamilies) {
    if (name.family == family) return name.model_type;
  }
  return "";
}

bool MoeConfig::IsSparse(int layer) const {
  return num_experts > 0 && std::find(dense_layers.begin(), dense_layers.end(), layer) == dense_layers.end();
}

std::vector<double> RopeConfig::InverseFrequencies(int head_dim) const {
  std::vector<double> frequencies(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(theta, -2.0 * i / head_dim);
    switch (scaling) {
      case Scaling::kNone:
        break;
      case Scaling::kLinear:
        frequency /= factor;
        break;
      case Scaling::kLlama3: {
        double wavelength = 2 * M_PI / frequency;
        double smooth =
            (original_context / wavelength - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
        smooth = std::clamp(smooth, 0.0, 1.0);
        frequency = (1 - smooth) * frequency / factor + smooth * frequency;
        break;
      }
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

absl::StatusOr<ModelConfig> ModelConfig::FromJson(absl::string_view config_text, absl::string_view generation_text) {
  ASSIGN_OR_RETURN(boost::json::object object, ParseJsonObject(config_text, "config.json"));
  JsonReader json(object, "config.json: ");
  ModelConfig config;
  ASSIGN_OR_RETURN(std::string type, json.String("model_type"));
  ASSIGN_OR_RETURN(config.family, FindFamily(type, &FamilyName::model_type));
  ASSIGN_OR_RETURN(config.num_layers, json.Int("num_hidden_layers"));
  ASSIGN_OR_RETURN(config.hidden_size, json.Int("hidden_size"));
  ASSIGN_OR_RETURN(config.intermediate_size, json.Int("intermediate_size"));
  ASSIGN_OR_RETURN(config.num_heads, json.Int("num_attention_heads"));
  ASSIGN_OR_RETURN(config.num_kv_heads, json.Int("num_key_value_heads", config.num_heads));
  if (config.num_heads <= 0) return json.Error("num_attention_heads", "must be over 0");
  ASSIGN_OR_RETURN(config.head_dim, json.Int("head_dim", config.hidden_size / config.num_heads));
  ASSIGN_OR_RETURN(config.vocab_size, json.Int("vocab_size"));
  ASSIGN_OR_RETURN(config.max_context_tokens, json.Int("max_position_embeddings"));
  ASSIGN_OR_RETURN(config.rms_epsilon, json.Number("rms_norm_eps", 1e-6));
  ASSIGN_OR_RETURN(config.tied_embeddings, json.Bool("tie_word_embeddings", false));
  ASSIGN_OR_RETURN(config.qkv_bias, json.Bool("attention_bias", false));
  ASSIGN_OR_RETURN(bool mlp_bias, json.Bool("mlp_bias", false));
  ASSIGN_OR_RETURN(bool sliding_window, json.Bool("use_sliding_window", false));
  ASSIGN_OR_RETURN(std::string activation, json.String("hidden_act", "silu"));
  if (mlp_bias) return absl::UnimplementedError("config.json: mlp_bias is not run");
  if (sliding_window) return absl::UnimplementedError("config.json: use_sliding_window is not run");
  if (activation != "silu") return absl::UnimplementedError("config.json: hidden_act other than silu is not run");
  RETURN_IF_ERROR(ReadRope(json, config.rope));
  if (config.family == ModelFamily::kQwen3Moe) RETURN_IF_ERROR(ReadMoe(json, config.num_layers, config.moe));
  if (!generation_text.empty()) {
    ASSIGN_OR_RETURN(boost::json::object generation, ParseJsonObject(generation_text, "generation_config.json"));
    RETURN_IF_ERROR(ReadEos(JsonReader(generation, "generation_config.json: "), config.eos_tokens));
  }
  if (config.eos_tokens.empty()) RETURN_IF_ERROR(ReadEos(json, config.eos_tokens));
  ApplyFamilyDefaults(config);
  RETURN_IF_ERROR(config.Validate());
  return config;
}

absl::StatusOr<ModelConfig> ModelConfig::FromGguf(const GgufFile& gguf) {
  ASSIGN_OR_RETURN(std::string architecture, gguf.GetString("general.architecture"));
  ModelConfig config;
  ASSIGN_OR_RETURN(config.family, FindFamily(architecture, &FamilyName::gguf_architecture));
  auto key = [&](absl::string_view name) { return absl::StrCat(architecture, ".", name); };
  ASSIGN_OR_RETURN(config.num_layers, gguf.GetInt(key("block_count")));
  ASSIGN_OR_RETURN(config.hidden_size, gguf.GetInt(key("embedding_length")));
  ASSIGN_OR_RETURN(config.intermediate_size, gguf.GetInt(key("feed_forward_length")));
  ASSIGN_OR_RETURN(config.num_heads, gguf.GetInt(key("attention.head_count")));
  if (config.num_heads <= 0) return absl::InvalidArgumentError(key("attention.head_count must be over 0"));
  ASSIGN_OR_RETURN(config.max_context_tokens, gguf.GetInt(key("context_length")));
  ASSIGN_OR_RETURN(config.rms_epsilon, gguf.GetFloat(key("attention.layer_norm_rms_epsilon")));
  config.num_kv_heads = static_cast<int>(gguf.GetInt(key("attention.head_count_kv")).value_or(config.num_heads));
  config.head_dim =
      static_cast<int>(gguf.GetInt(key("attention.key_length")).value_or(config.hidden_size / config.num_heads));
  config.rope.theta = gguf.GetFloat(key("rope.freq_base")).value_or(10000.0);
  if (config.family == ModelFamily::kLlama) config.rope.pairing = RopeConfig::Pairing::kAdjacent;
  if (gguf.GetString(key("rope.scaling.type")).value_or("none") == "linear") {
    config.rope.scaling = RopeConfig::Scaling::kLinear;
    ASSIGN_OR_RETURN(config.rope.factor, gguf.GetFloat(key("rope.scaling.factor")));
  }
  ASSIGN_OR_RETURN(auto tokens, gguf.GetStrings("tokenizer.ggml.tokens"));
  config.vocab_size = static_cast<int>(gguf.GetInt(key("vocab_size")).value_or(tokens.size()));
  if (config.family == ModelFamily::kQwen3Moe) {
    ASSIGN_OR_RETURN(config.moe.num_experts, gguf.GetInt(key("expert_count")));
    ASSIGN_OR_RETURN(config.moe.experts_per_token, gguf.GetInt(key("expert_used_count")));
    ASSIGN_OR_RETURN(config.moe.intermediate_size, gguf.GetInt(key("expert_feed_forward_length")));
    config.moe.normalise_top_k = true;
  }
  config.tied_embeddings = true;
  for (const TensorView& tensor : gguf.tensors()) {
    if (tensor.name == "output.weight") config.tied_embeddings = false;
    if (tensor.name == "rope_freqs.weight") {
      return absl::UnimplementedError(
          "the GGUF file carries rope_freqs.weight (llama3 scaling), which is read from "
          "config.json only; use the "
          "Hugging Face folder");
    }
    if (tensor.name == "blk.0.attn_q.bias") config.qkv_bias = true;
  }
  for (absl::string_view eos : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (auto id = gguf.GetInt(eos); id.ok()) config.eos_tokens.push_back(static_cast<int32_t>(*id));
  }
  ApplyFamilyDefaults(config);
  RETURN_IF_ERROR(config.Validate());
  return config;
}

absl::Status ModelConfig::Validate() const {
  auto check = [](int value, int limit, absl::string_view name) {
    if (value >= 1 && value <= limit) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("model has an impossible ", name, ": ", value));
  };
  RETURN_IF_ERROR(check(num_layers, 10'000, "number of layers"));
  RETURN_IF_ERROR(check(hidden_size, 1 << 20, "hidden size"));
  RETURN_IF_ERROR(check(intermediate_size, 1 << 22, "intermediate size"));
  RETURN_IF_ERROR(check(num_heads, 1 << 14, "number of heads"));
  RETURN_IF_ERROR(check(num_kv_heads, 1 << 14, "number of KV heads"));
  RETURN_IF_ERROR(check(head_dim, 1 << 12, "head size"));
  RETURN_IF_ERROR(check(vocab_size, 1 << 24, "vocabulary size"));
  RETURN_IF_ERROR(check(max_context_tokens, 1 << 28, "context length"));
  if (num_heads % num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model has ", num_heads, " heads, no multiple of its ", num_kv_heads, " KV heads"));
  }
  if (head_dim % 2 != 0) return absl::InvalidArgumentError(absl::StrCat("model has an odd head size: ", head_dim));
  if (!(rms_epsilon > 0) || !(rope.theta > 0)) {
    return absl::InvalidArgumentError("model has a norm epsilon or rope theta that is not over 0");
  }
  if (moe.num_experts > 0) {
    RETURN_IF_ERROR(check(moe.num_experts, 1 << 16, "number of experts"));
    RETURN_IF_ERROR(check(moe.experts_per_token, moe.num_experts, "number of experts per token"));
    RETURN_IF_ERROR(check(moe.intermediate_size, 1 << 22, "expert intermediate size"));
  }
  return absl::OkStatus();
}

}  // namespace tandem
