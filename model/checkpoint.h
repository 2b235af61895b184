#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/topology.h"
#include "model/gguf.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/tensor.h"
#include "model/tokenizer.h"

namespace tandem {

// A model on disk, GGUF file or Hugging Face folder: its config, its weights under Tandem's own
// names, its tokenizer and chat template.
//
// Weight names: embedding, final_norm, lm_head, and layers.N.{attention_norm, q, k, v, o, q_norm,
// k_norm, mlp_norm, gate, up, down, router, experts.E.{gate, up, down}}; biases end in ".bias".
//
// Thread-safety: immutable after Open.
// Ownership: owns the mapped files; tensors are views into them.
class Checkpoint {
 public:
  // Opens `path`; errors name the file and what is wrong. All weights that the config calls for are
  // there and have the right shape when this returns OK.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  const ModelConfig& config() const { return config_; }
  // NOT_FOUND when missing.
  absl::StatusOr<TensorView> FindTensor(absl::string_view name) const;
  // All weights, by name.
  const absl::flat_hash_map<std::string, TensorView>& tensors() const { return tensors_; }
  // Depends on the config, a sample of every weight and the precision they are computed with: KV of
  // workers with unlike fingerprints must not be mixed.
  uint64_t Fingerprint(Precision precision) const;

  // Builds the tokenizer; NOT_FOUND when the checkpoint has none.
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() const;
  // Jinja source; empty when the checkpoint has none.
  const std::string& chat_template() const { return chat_template_; }
  // What tokenizer_config.json says that a template's bos_token and eos_token stand for; empty where it does not.
  const std::string& bos_text() const { return bos_text_; }
  const std::string& eos_text() const { return eos_text_; }

 private:
  Checkpoint() = default;
  absl::Status OpenGguf(const std::string& path);
  absl::Status OpenFolder(const std::string& path);
  absl::Status CheckWeights() const;

  std::string path_;
  ModelConfig config_;
  std::unique_ptr<GgufFile> gguf_;
  std::vector<std::unique_ptr<SafetensorsFile>> safetensors_;
  absl::flat_hash_map<std::string, TensorView> tensors_;
  std::string tokenizer_json_;
  std::string chat_template_, bos_text_, eos_text_;
};

}  // namespace tandem
