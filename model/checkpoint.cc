#include "model/checkpoint.h"

#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/json_reader.h"
#include "model/quantised_weights.h"

namespace tandem {
namespace {

struct NamePair {
  absl::string_view theirs, ours;
};

constexpr NamePair kGgufTop[] = {{"token_embd", "embedding"}, {"output_norm", "final_norm"}, {"output", "lm_head"}};
constexpr NamePair kGgufLayer[] = {{"attn_norm", "attention_norm"},
                                   {"attn_q", "q"},
                                   {"attn_k", "k"},
                                   {"attn_v", "v"},
                                   {"attn_output", "o"},
                                   {"attn_q_norm", "q_norm"},
                                   {"attn_k_norm", "k_norm"},
                                   {"ffn_norm", "mlp_norm"},
                                   {"ffn_gate", "gate"},
                                   {"ffn_up", "up"},
                                   {"ffn_down", "down"},
                                   {"ffn_gate_inp", "router"}};
constexpr NamePair kGgufExperts[] = {{"ffn_gate_exps", "gate"}, {"ffn_up_exps", "up"}, {"ffn_down_exps", "down"}};
constexpr NamePair kFolderTop[] = {
    {"model.embed_tokens", "embedding"}, {"model.norm", "final_norm"}, {"lm_head", "lm_head"}};
constexpr NamePair kFolderLayer[] = {{"input_layernorm", "attention_norm"},
                                     {"self_attn.q_proj", "q"},
                                     {"self_attn.k_proj", "k"},
                                     {"self_attn.v_proj", "v"},
                                     {"self_attn.o_proj", "o"},
                                     {"self_attn.q_norm", "q_norm"},
                                     {"self_attn.k_norm", "k_norm"},
                                     {"post_attention_layernorm", "mlp_norm"},
                                     {"mlp.gate_proj", "gate"},
                                     {"mlp.up_proj", "up"},
                                     {"mlp.down_proj", "down"},
                                     {"mlp.gate", "router"}};

template <size_t kSize>
absl::string_view Translate(const NamePair (&pairs)[kSize], absl::string_view name) {
  for (const NamePair& pair : pairs) {
    if (pair.theirs == name) return pair.ours;
  }
  return "";
}

// "q.weight" -> "q", "q.bias" -> "q.bias".
std::string WithSuffix(absl::string_view name, bool is_bias) { return absl::StrCat(name, is_bias ? ".bias" : ""); }

// Splits off ".weight" or ".bias"; false for other tensors.
bool SplitSuffix(absl::string_view& name, bool& is_bias) {
  is_bias = absl::ConsumeSuffix(&name, ".bias");
  return is_bias || absl::ConsumeSuffix(&name, ".weight");
}

// Splits "PREFIX12.rest" into layer 12 and "rest"; false when it has no such form.
bool SplitLayer(absl::string_view prefix, absl::string_view& name, int& layer) {
  if (!absl::ConsumePrefix(&name, prefix)) return false;
  size_t dot = name.find('.');
  if (dot == absl::string_view::npos || !absl::SimpleAtoi(name.substr(0, dot), &layer) || layer < 0) return false;
  name.remove_prefix(dot + 1);
  return true;
}

std::string OurNameOfFolder(absl::string_view name) {
  bool is_bias;
  if (!SplitSuffix(name, is_bias)) return "";
  if (absl::string_view top = Translate(kFolderTop, name); !top.empty()) return WithSuffix(top, is_bias);
  int layer;
  if (!SplitLayer("model.layers.", name, layer)) return "";
  if (absl::string_view part = Translate(kFolderLayer, name); !part.empty()) {
    return absl::StrCat("layers.", layer, ".", WithSuffix(part, is_bias));
  }
  int expert;
  if (!SplitLayer("mlp.experts.", name, expert)) return "";
  absl::string_view part = Translate(kFolderLayer, absl::StrCat("mlp.", name));
  return part.empty() ? "" : absl::StrCat("layers.", layer, ".experts.", expert, ".", part);
}

// Names that one GGUF tensor provides; a three-dimensional one holds all experts of a layer.
void AddGgufTensor(const TensorView& tensor, absl::flat_hash_map<std::string, TensorView>& out) {
  absl::string_view name = tensor.name;
  bool is_bias;
  if (!SplitSuffix(name, is_bias)) return;
  if (absl::string_view top = Translate(kGgufTop, name); !top.empty()) {
    out[WithSuffix(top, is_bias)] = tensor;
    return;
  }
  int layer;
  if (!SplitLayer("blk.", name, layer)) return;
  if (absl::string_view part = Translate(kGgufLayer, name); !part.empty()) {
    out[absl::StrCat("layers.", layer, ".", WithSuffix(part, is_bias))] = tensor;
    return;
  }
  absl::string_view part = Translate(kGgufExperts, name);
  if (part.empty() || tensor.shape.size() != 3) return;
  size_t bytes = tensor.data.size() / tensor.shape[0];
  for (int64_t expert = 0; expert < tensor.shape[0]; ++expert) {
    TensorView view = tensor;
    view.shape.erase(view.shape.begin());
    view.data = tensor.data.subspan(expert * bytes, bytes);
    out[absl::StrCat("layers.", layer, ".experts.", expert, ".", part)] = std::move(view);
  }
}

absl::StatusOr<std::string> ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path.string(), " cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Names of the safetensors files of a folder, from the index or as "model.safetensors".
absl::StatusOr<std::set<std::string>> WeightFiles(const std::filesystem::path& folder) {
  std::set<std::string> files;
  absl::StatusOr<std::string> index = ReadText(folder / "model.safetensors.index.json");
  if (!index.ok()) return std::set<std::string>{"model.safetensors"};
  ASSIGN_OR_RETURN(boost::json::object object, ParseJsonObject(*index, "model.safetensors.index.json"));
  const boost::json::value* map = object.if_contains("weight_map");
  if (map == nullptr || !map->is_object()) {
    return absl::InvalidArgumentError("model.safetensors.index.json: weight_map: expected an object");
  }
  for (const auto& entry : map->as_object()) {
    if (!entry.value().is_string()) {
      return absl::InvalidArgumentError("model.safetensors.index.json: weight_map: expected file names");
    }
    std::string file(entry.value().as_string());
    if (absl::StrContains(file, '/') || absl::StartsWith(file, ".")) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.safetensors.index.json: weight_map: \"", file, "\" is no plain file name"));
    }
    files.insert(std::move(file));
  }
  return files;
}

// tokenizer_config.json's bos_token or eos_token: a text, or an object with its content; empty when it has none.
absl::StatusOr<std::string> SpecialText(const boost::json::object& object, absl::string_view key) {
  JsonReader reader(object, "tokenizer_config.json: ");
  const boost::json::value* value = reader.Find(key);
  if (value == nullptr) return "";
  if (!value->is_object()) return reader.String(key);
  return JsonReader(value->as_object(), absl::StrCat("tokenizer_config.json: ", key, ".")).String("content");
}

// tokenizer_config.json's chat_template: a text, or a list of named ones of which "default" counts.
absl::StatusOr<std::string> TemplateOfTokenizerConfig(const boost::json::object& object) {
  const boost::json::value* value = object.if_contains("chat_template");
  if (value == nullptr) return "";
  if (value->is_string()) return std::string(value->as_string());
  if (value->is_array()) {
    for (const boost::json::value& item : value->as_array()) {
      if (!item.is_object()) continue;
      JsonReader reader(item.as_object(), "tokenizer_config.json: chat_template.");
      if (reader.String("name", "").value_or("") == "default") return reader.String("template");
    }
  }
  return absl::InvalidArgumentError("tokenizer_config.json: chat_template: expected a text or a list with a default");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->path_ = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    RETURN_IF_ERROR(checkpoint->OpenFolder(path));
  } else {
    RETURN_IF_ERROR(checkpoint->OpenGguf(path));
  }
  if (absl::Status status = checkpoint->CheckWeights(); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  return checkpoint;
}

absl::Status Checkpoint::OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(gguf_, GgufFile::Open(path));
  absl::StatusOr<ModelConfig> config = ModelConfig::FromGguf(*gguf_);
  if (!config.ok()) return absl::Status(config.status().code(), absl::StrCat(path, ": ", config.status().message()));
  config_ = *std::move(config);
  for (const TensorView& tensor : gguf_->tensors()) AddGgufTensor(tensor, tensors_);
  chat_template_ = gguf_->GetString("tokenizer.chat_template").value_or("");
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenFolder(const std::string& path) {
  std::filesystem::path folder(path);
  ASSIGN_OR_RETURN(std::string config, ReadText(folder / "config.json"));
  std::string generation = ReadText(folder / "generation_config.json").value_or("");
  absl::StatusOr<ModelConfig> parsed = ModelConfig::FromJson(config, generation);
  if (!parsed.ok()) return absl::Status(parsed.status().code(), absl::StrCat(path, "/", parsed.status().message()));
  config_ = *std::move(parsed);
  absl::StatusOr<QuantisedWeights> quantised = QuantisedWeights::OfConfig(config);
  if (!quantised.ok()) {
    return absl::Status(quantised.status().code(), absl::StrCat(path, "/", quantised.status().message()));
  }
  ASSIGN_OR_RETURN(std::set<std::string> files, WeightFiles(folder));
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> weights, SafetensorsFile::Open(folder / file));
    for (const TensorView& tensor : weights->tensors()) {
      if (quantised->Take(tensor)) continue;
      if (std::string name = OurNameOfFolder(tensor.name); !name.empty()) tensors_[name] = tensor;
    }
    safetensors_.push_back(std::move(weights));
  }
  const absl::StatusOr<std::vector<TensorView>> scaled = quantised->Join();
  if (!scaled.ok()) {
    return absl::Status(scaled.status().code(), absl::StrCat(path, ": ", scaled.status().message()));
  }
  for (const TensorView& tensor : *scaled) {
    if (std::string name = OurNameOfFolder(tensor.name); !name.empty()) tensors_[name] = tensor;
  }
  tokenizer_json_ = ReadText(folder / "tokenizer.json").value_or("");
  boost::json::object tokenizer_config;
  if (auto text = ReadText(folder / "tokenizer_config.json"); text.ok()) {
    ASSIGN_OR_RETURN(tokenizer_config, ParseJsonObject(*text, "tokenizer_config.json"));
    ASSIGN_OR_RETURN(bos_text_, SpecialText(tokenizer_config, "bos_token"));
    ASSIGN_OR_RETURN(eos_text_, SpecialText(tokenizer_config, "eos_token"));
  }
  if (absl::StatusOr<std::string> separate = ReadText(folder / "chat_template.jinja"); separate.ok()) {
    chat_template_ = *std::move(separate);
  } else {
    ASSIGN_OR_RETURN(chat_template_, TemplateOfTokenizerConfig(tokenizer_config));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckWeights() const {
  absl::flat_hash_set<std::string> used;
  auto check = [&](const std::string& name, std::vector<int64_t> shape) -> absl::Status {
    ASSIGN_OR_RETURN(TensorView tensor, FindTensor(name));
    used.insert(name);
    if (tensor.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat("weight ", name, " has shape [", absl::StrJoin(tensor.shape, ", "),
                                                     "], the config wants [", absl::StrJoin(shape, ", "), "]"));
    }
    switch (tensor.dtype) {
      case DType::kU8:
      case DType::kI32:
      case DType::kI64:
        return absl::UnimplementedError(absl::StrCat("weight ", name, " is ", DTypeName(tensor.dtype)));
      case DType::kF8E4M3:
      case DType::kF4E2M1:
      case DType::kI4:
      case DType::kI8:
        if (!tensor.scales.empty()) return absl::OkStatus();
        return absl::InvalidArgumentError(
            absl::StrCat("weight ", tensor.name, " is ", DTypeName(tensor.dtype), " and has no scale"));
      default:
        return absl::OkStatus();
    }
  };
  const int64_t hidden = config_.hidden_size, q = int64_t{config_.num_heads} * config_.head_dim,
                kv = int64_t{config_.num_kv_heads} * config_.head_dim;
  RETURN_IF_ERROR(check("embedding", {config_.vocab_size, hidden}));
  RETURN_IF_ERROR(check("final_norm", {hidden}));
  if (!config_.tied_embeddings) RETURN_IF_ERROR(check("lm_head", {config_.vocab_size, hidden}));
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    std::string prefix = absl::StrCat("layers.", layer, ".");
    RETURN_IF_ERROR(check(prefix + "attention_norm", {hidden}));
    RETURN_IF_ERROR(check(prefix + "mlp_norm", {hidden}));
    RETURN_IF_ERROR(check(prefix + "q", {q, hidden}));
    RETURN_IF_ERROR(check(prefix + "k", {kv, hidden}));
    RETURN_IF_ERROR(check(prefix + "v", {kv, hidden}));
    RETURN_IF_ERROR(check(prefix + "o", {hidden, q}));
    if (config_.qkv_bias) {
      RETURN_IF_ERROR(check(prefix + "q.bias", {q}));
      RETURN_IF_ERROR(check(prefix + "k.bias", {kv}));
      RETURN_IF_ERROR(check(prefix + "v.bias", {kv}));
    }
    if (config_.qk_norm) {
      RETURN_IF_ERROR(check(prefix + "q_norm", {config_.head_dim}));
      RETURN_IF_ERROR(check(prefix + "k_norm", {config_.head_dim}));
    }
    auto check_mlp = [&](const std::string& mlp, int64_t width) -> absl::Status {
      RETURN_IF_ERROR(check(mlp + "gate", {width, hidden}));
      RETURN_IF_ERROR(check(mlp + "up", {width, hidden}));
      return check(mlp + "down", {hidden, width});
    };
    if (!config_.moe.IsSparse(layer)) {
      RETURN_IF_ERROR(check_mlp(prefix, config_.intermediate_size));
      continue;
    }
    RETURN_IF_ERROR(check(prefix + "router", {config_.moe.num_experts, hidden}));
    for (int expert = 0; expert < config_.moe.num_experts; ++expert) {
      RETURN_IF_ERROR(check_mlp(absl::StrCat(prefix, "experts.", expert, "."), config_.moe.intermediate_size));
    }
  }
  // A weight that is there and would be left out (a bias, a norm) means other results than its makers' code gives.
  for (const auto& [name, tensor] : tensors_) {
    if (used.contains(name) || (name == "lm_head" && config_.tied_embeddings)) continue;
    return absl::UnimplementedError(absl::StrCat("weight ", tensor.name, " has no place in a ",
                                                 ModelFamilyName(config_.family), " model as Tandem runs it"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::FindTensor(absl::string_view name) const {
  auto entry = tensors_.find(name);
  if (entry == tensors_.end()) return absl::NotFoundError(absl::StrCat("weight ", name, " is missing"));
  return entry->second;
}

uint64_t Checkpoint::Fingerprint(Precision precision) const {
  constexpr size_t kSampleBytes = 256;
  std::vector<absl::string_view> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  const std::string traits = absl::StrCat(config_.Identity(), ";", static_cast<int>(precision));
  uint64_t hash = XXH3_64bits(traits.data(), traits.size());
  for (absl::string_view name : names) {
    const TensorView& tensor = tensors_.at(name);
    std::string label = absl::StrCat(name, DTypeName(tensor.dtype), absl::StrJoin(tensor.shape, ","));
    hash = XXH3_64bits_withSeed(label.data(), label.size(), hash);
    size_t size = tensor.data.size();
    hash = XXH3_64bits_withSeed(tensor.data.data(), std::min(size, kSampleBytes), hash);
    size_t tail = std::min(size, kSampleBytes);
    hash = XXH3_64bits_withSeed(tensor.data.data() + size - tail, tail, hash);
    if (tensor.scales.empty()) continue;
    const BlockScales& scales = tensor.scales;
    label = absl::StrCat(DTypeName(scales.dtype), ",", scales.block_rows, ",", scales.block_columns, ",",
                         absl::Hex(__builtin_bit_cast(uint32_t, scales.factor)));
    hash = XXH3_64bits_withSeed(label.data(), label.size(), hash);
    tail = std::min(scales.data.size(), kSampleBytes);
    hash = XXH3_64bits_withSeed(scales.data.data(), tail, hash);
    hash = XXH3_64bits_withSeed(scales.data.data() + scales.data.size() - tail, tail, hash);
  }
  return hash;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Checkpoint::LoadTokenizer() const {
  absl::StatusOr<TokenizerSpec> spec = gguf_ != nullptr ? TokenizerSpec::FromGguf(*gguf_)
                                       : tokenizer_json_.empty()
                                           ? absl::NotFoundError("the model folder has no tokenizer.json")
                                           : TokenizerSpec::FromJson(tokenizer_json_);
  if (!spec.ok()) return absl::Status(spec.status().code(), absl::StrCat(path_, ": ", spec.status().message()));
  return Tokenizer::Create(*std::move(spec));
}

}  // namespace tandem
