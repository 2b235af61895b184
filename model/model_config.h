#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

class GgufFile;

enum class ModelFamily { kLlama, kQwen2, kQwen3, kQwen3Moe };
absl::string_view ModelFamilyName(ModelFamily family);

// Rotary position embedding.
struct RopeConfig {
  enum class Pairing {
    kHalves,   // Element i turns with i + head_dim / 2 (Hugging Face).
    kAdjacent  // Element 2 i turns with 2 i + 1 (GGUF's llama architecture permutes Q and K so).
  };
  enum class Scaling { kNone, kLinear, kLlama3 };
  double theta = 10000;
  Pairing pairing = Pairing::kHalves;
  Scaling scaling = Scaling::kNone;
  double factor = 1;
  double low_frequency_factor = 1, high_frequency_factor = 4;  // kLlama3
  double original_context = 8192;                              // kLlama3

  // Radians per position of each of the head_dim / 2 pairs. Source: the model cards' reference
  // code.
  std::vector<double> InverseFrequencies(int head_dim) const;
};

struct MoeConfig {
  int num_experts = 0;  // 0: dense.
  int experts_per_token = 0;
  int intermediate_size = 0;
  bool normalise_top_k = false;
  // Layers whose feed-forward is dense although the model is sparse.
  std::vector<int> dense_layers;
  bool IsSparse(int layer) const;
};

// What a checkpoint says about its architecture; all sizes in elements.
struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  int num_layers = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_context_tokens = 0;
  float rms_epsilon = 1e-5f;
  bool tied_embeddings = false;
  bool qkv_bias = false;  // Qwen2, and Llama-likes that say so.
  bool qk_norm = false;   // Qwen3: RMS norm of each query and key head.
  RopeConfig rope;
  MoeConfig moe;
  std::vector<int32_t> eos_tokens;

  // From config.json (and generation_config.json, or ""). INVALID_ARGUMENT names the key;
  // UNIMPLEMENTED for architectures and features that Tandem does not run.
  static absl::StatusOr<ModelConfig> FromJson(absl::string_view config, absl::string_view generation_config);
  static absl::StatusOr<ModelConfig> FromGguf(const GgufFile& gguf);

  // Text that is equal only for configs with which equal tokens give equal KV and logits.
  std::string Identity() const;

 private:
  // INVALID_ARGUMENT for sizes that do not go together.
  absl::Status Validate() const;
};

}  // namespace tandem
