#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/base/casts.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/gguf.h"
#include "model/json_reader.h"

namespace tandem {
namespace {

// More than any model has; what is over them is a broken file.
constexpr int64_t kMaxLayers = 10'000, kMaxHidden = 1 << 20, kMaxIntermediate = 1 << 22, kMaxHeads = 1 << 14,
                  kMaxHeadDim = 1 << 12, kMaxVocabulary = 1 << 24, kMaxContext = 1 << 28, kMaxExperts = 1 << 16;

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

absl::Status ReadRope(const GgufFile& gguf, absl::string_view architecture, RopeConfig& rope) {
  absl::StatusOr<double> theta = gguf.GetFloat(absl::StrCat(architecture, ".rope.freq_base"));
  if (!theta.ok() && !absl::IsNotFound(theta.status())) return theta.status();
  rope.theta = theta.value_or(rope.theta);
  const std::string key = absl::StrCat(architecture, ".rope.scaling.type");
  absl::StatusOr<std::string> type = gguf.GetString(key);
  if (absl::IsNotFound(type.status())) return absl::OkStatus();
  if (!type.ok()) return type.status();
  if (*type == "none") return absl::OkStatus();
  if (*type != "linear") return absl::UnimplementedError(absl::StrCat(key, " \"", *type, "\"; run are none, linear"));
  rope.scaling = RopeConfig::Scaling::kLinear;
  ASSIGN_OR_RETURN(rope.factor, gguf.GetFloat(absl::StrCat(architecture, ".rope.scaling.factor")));
  if (!(rope.factor >= 1))
    return absl::InvalidArgumentError(absl::StrCat(architecture, ".rope.scaling.factor: under 1"));
  return absl::OkStatus();
}

absl::Status ReadMoe(const JsonReader& json, int num_layers, MoeConfig& moe) {
  RETURN_IF_ERROR(json.Size("num_experts", kMaxExperts, moe.num_experts));
  RETURN_IF_ERROR(json.Size("num_experts_per_tok", moe.num_experts, moe.experts_per_token));
  RETURN_IF_ERROR(json.Size("moe_intermediate_size", kMaxIntermediate, moe.intermediate_size));
  ASSIGN_OR_RETURN(moe.normalise_top_k, json.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(int64_t step, json.Int("decoder_sparse_step", 1));
  if (step < 1) return json.Error("decoder_sparse_step", "must be at least 1");
  for (int layer = 0; layer < num_layers; ++layer) {
    if ((layer + 1) % step != 0) moe.dense_layers.push_back(layer);
  }
  if (const boost::json::value* dense = json.Find("mlp_only_layers"); dense != nullptr) {
    if (!dense->is_array()) return json.Error("mlp_only_layers", "expected a list");
    for (const boost::json::value& layer : dense->as_array()) {
      if (!layer.is_int64() || layer.as_int64() < 0 || layer.as_int64() >= num_layers) {
        return json.Error("mlp_only_layers", "expected numbers of layers");
      }
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
    if (!id.is_int64() || id.as_int64() < 0 || id.as_int64() > kMaxVocabulary) {
      return json.Error("eos_token_id", "expected token ids");
    }
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
  RETURN_IF_ERROR(json.Size("num_hidden_layers", kMaxLayers, config.num_layers));
  RETURN_IF_ERROR(json.Size("hidden_size", kMaxHidden, config.hidden_size));
  RETURN_IF_ERROR(json.Size("intermediate_size", kMaxIntermediate, config.intermediate_size));
  RETURN_IF_ERROR(json.Size("num_attention_heads", kMaxHeads, config.num_heads));
  RETURN_IF_ERROR(json.Size("num_key_value_heads", kMaxHeads, config.num_kv_heads, config.num_heads));
  RETURN_IF_ERROR(json.Size("head_dim", kMaxHeadDim, config.head_dim, config.hidden_size / config.num_heads));
  RETURN_IF_ERROR(json.Size("vocab_size", kMaxVocabulary, config.vocab_size));
  RETURN_IF_ERROR(json.Size("max_position_embeddings", kMaxContext, config.max_context_tokens));
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
  // As JsonReader::Size; a default counts only for a key that is missing.
  auto read_size = [&](absl::string_view name, int64_t max, int& size,
                       std::optional<int64_t> default_value = std::nullopt) -> absl::Status {
    absl::StatusOr<int64_t> value = gguf.GetInt(key(name));
    if (absl::IsNotFound(value.status()) && default_value.has_value()) value = *default_value;
    if (!value.ok()) return value.status();
    if (*value < 1 || *value > max) {
      return absl::InvalidArgumentError(
          absl::StrCat(key(name), ": expected a number from 1 to ", max, ", got ", *value));
    }
    size = static_cast<int>(*value);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(read_size("block_count", kMaxLayers, config.num_layers));
  RETURN_IF_ERROR(read_size("embedding_length", kMaxHidden, config.hidden_size));
  RETURN_IF_ERROR(read_size("feed_forward_length", kMaxIntermediate, config.intermediate_size));
  RETURN_IF_ERROR(read_size("attention.head_count", kMaxHeads, config.num_heads));
  RETURN_IF_ERROR(read_size("attention.head_count_kv", kMaxHeads, config.num_kv_heads, config.num_heads));
  RETURN_IF_ERROR(
      read_size("attention.key_length", kMaxHeadDim, config.head_dim, config.hidden_size / config.num_heads));
  RETURN_IF_ERROR(read_size("context_length", kMaxContext, config.max_context_tokens));
  ASSIGN_OR_RETURN(config.rms_epsilon, gguf.GetFloat(key("attention.layer_norm_rms_epsilon")));
  RETURN_IF_ERROR(ReadRope(gguf, architecture, config.rope));
  if (config.family == ModelFamily::kLlama) config.rope.pairing = RopeConfig::Pairing::kAdjacent;
  ASSIGN_OR_RETURN(auto tokens, gguf.GetStrings("tokenizer.ggml.tokens"));
  RETURN_IF_ERROR(read_size("vocab_size", kMaxVocabulary, config.vocab_size, tokens.size()));
  if (config.family == ModelFamily::kQwen3Moe) {
    RETURN_IF_ERROR(read_size("expert_count", kMaxExperts, config.moe.num_experts));
    RETURN_IF_ERROR(read_size("expert_used_count", config.moe.num_experts, config.moe.experts_per_token));
    RETURN_IF_ERROR(read_size("expert_feed_forward_length", kMaxIntermediate, config.moe.intermediate_size));
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
    absl::StatusOr<int64_t> id = gguf.GetInt(eos);
    if (absl::IsNotFound(id.status())) continue;
    if (!id.ok()) return id.status();
    if (*id < 0 || *id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(eos, ": ", *id, " is not in the vocabulary"));
    }
    config.eos_tokens.push_back(static_cast<int32_t>(*id));
  }
  ApplyFamilyDefaults(config);
  RETURN_IF_ERROR(config.Validate());
  return config;
}

std::string ModelConfig::Identity() const {
  // Floats by their bits: StrCat would round them.
  auto bits = [](double value) { return absl::Hex(absl::bit_cast<uint64_t>(value)); };
  return absl::StrCat(
      absl::StrJoin({static_cast<int>(family), num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads,
                     head_dim, vocab_size, int{tied_embeddings}, int{qkv_bias}, int{qk_norm},
                     static_cast<int>(rope.pairing), static_cast<int>(rope.scaling), moe.num_experts,
                     moe.experts_per_token, moe.intermediate_size, int{moe.normalise_top_k}},
                    ","),
      ";", bits(rms_epsilon), ",", bits(rope.theta), ",", bits(rope.factor), ",", bits(rope.low_frequency_factor), ",",
      bits(rope.high_frequency_factor), ",", bits(rope.original_context), ";", absl::StrJoin(moe.dense_layers, ","));
}

absl::Status ModelConfig::Validate() const {
  if (num_heads % num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model has ", num_heads, " heads, no multiple of its ", num_kv_heads, " KV heads"));
  }
  if (head_dim % 2 != 0) return absl::InvalidArgumentError(absl::StrCat("model has an odd head size: ", head_dim));
  if (!(rms_epsilon > 0) || !(rope.theta > 0)) {
    return absl::InvalidArgumentError("model has a norm epsilon or rope theta that is not over 0");
  }
  return absl::OkStatus();
}

}  // namespace tandem
