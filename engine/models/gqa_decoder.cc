#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/models/decoder_model.h"

// Decoders with grouped-query attention and a SiLU-gated feed-forward, dense or sparse: Llama,
// Qwen2, Qwen3, Qwen3-MoE and those that share their shape (SmolLM2).

namespace tandem {
namespace {

struct Layer {
  std::unique_ptr<VectorWeight> attention_norm, mlp_norm, q_norm, k_norm;
  std::unique_ptr<LinearWeight> qkv, o, gate_up, down, router;
  MoeWeights moe;  // Empty in dense layers.
};

class GqaDecoder final : public DecoderModel {
 public:
  GqaDecoder(const ModelConfig& config, const Shard& shard, Ops& ops)
      : config_(ShardConfig(config, shard.size)), shard_(shard), ops_(ops) {}

  absl::Status Load(const Checkpoint& checkpoint, int max_rows, int max_logit_rows);

  const Activation& Forward(const StepBatch& batch, const KvPoolView& kv, int group_layers,
                            LayersDone layers_done) override {
    int reported = 0;
    const auto report = [&](int end) {
      if (end > reported) layers_done(reported, end);
      reported = end;
    };
    ops_.RunStep(batch, config_.rope, {config_.num_heads, config_.num_kv_heads, config_.head_dim}, [&] {
      const int rows = batch.rows(), last = config_.num_layers - 1;
      ops_.Embed(*embedding_, *hidden_);
      for (int i = 0; i < last; ++i) {
        RunAttention(layers_[i], i, rows, kv);
        if (i + 1 - reported >= group_layers) report(i + 1);
        RunMlp(layers_[i], i, rows, *hidden_);
      }
      const int logit_rows = static_cast<int>(batch.logit_rows.size());
      if (logit_rows == rows) {
        RunAttention(layers_[last], last, rows, kv);
        RunMlp(layers_[last], last, rows, *hidden_);
        ops_.GatherLogitRows(*hidden_, *last_hidden_);
      } else {
        // Nothing is read of the other rows but their keys and values.
        AppendKv(layers_[last], last, rows, kv);
        report(config_.num_layers);
        if (logit_rows > 0) RunLogitRows(layers_[last], last, logit_rows, kv);
      }
      RunHead(logit_rows);
    });
    report(config_.num_layers);
    return *logits_;
  }

 private:
  void RunAttention(const Layer& layer, int index, int rows, const KvPoolView& kv) {
    ops_.NormLinear(*hidden_, *layer.attention_norm, config_.rms_epsilon, *layer.qkv, rows, *normed_, *qkv_);
    ops_.AppendAndAttend(*qkv_, NormOf(layer), index, kv, *attended_);
    AddLinear(*attended_, *layer.o, rows, attention_summand_.get(), *hidden_);
  }

  void AppendKv(const Layer& layer, int index, int rows, const KvPoolView& kv) {
    ops_.NormLinear(*hidden_, *layer.attention_norm, config_.rms_epsilon, *layer.qkv, rows, *normed_, *qkv_);
    ops_.RopeAndAppendKv(*qkv_, NormOf(layer), index, kv);
  }

  // The rest of a layer, into last_hidden_.
  void RunLogitRows(const Layer& layer, int index, int logit_rows, const KvPoolView& kv) {
    ops_.GatherLogitRows(*hidden_, *last_hidden_);
    ops_.GatherLogitRows(*qkv_, *last_qkv_);
    ops_.AttendLogitRows(*last_qkv_, index, kv, *attended_);
    AddLinear(*attended_, *layer.o, logit_rows, attention_summand_.get(), *last_hidden_);
    RunMlp(layer, index, logit_rows, *last_hidden_);
  }

  QkNorm NormOf(const Layer& layer) const { return {layer.q_norm.get(), layer.k_norm.get(), config_.rms_epsilon}; }

  // hidden += in W^T, of all ranks.
  void AddLinear(const Activation& in, const LinearWeight& weight, int rows, Activation* summand, Activation& hidden) {
    ops_.Linear(in, weight, rows, /*add=*/summand == nullptr, summand == nullptr ? hidden : *summand);
    if (summand != nullptr) ops_.AddRanks(*summand, rows, hidden);
  }

  void RunMlp(const Layer& layer, int index, int rows, Activation& hidden) {
    if (config_.moe.IsSparse(index)) {
      ops_.RmsNorm(hidden, *layer.mlp_norm, config_.rms_epsilon, rows, *normed_);
      ops_.Linear(*normed_, *layer.router, rows, /*add=*/false, *router_logits_);
      Activation* summand = mlp_summand_.get();
      if (summand != nullptr) ops_.Clear(rows, *summand);
      ops_.Moe(*normed_, *router_logits_, layer.moe, rows, summand == nullptr ? hidden : *summand);
      if (summand != nullptr) ops_.AddRanks(*summand, rows, hidden);
      return;
    }
    ops_.NormGatedLinear(hidden, *layer.mlp_norm, config_.rms_epsilon, *layer.gate_up, rows, *normed_, *gate_up_,
                         *activated_);
    AddLinear(*activated_, *layer.down, rows, mlp_summand_.get(), hidden);
  }

  // Of last_hidden_.
  void RunHead(int logit_rows) {
    Activation* part = logits_part_.get();
    ops_.NormLinear(*last_hidden_, *final_norm_, config_.rms_epsilon, *lm_head_, logit_rows, *last_normed_,
                    part == nullptr ? *logits_ : *part);
    if (part != nullptr && logit_rows > 0) ops_.JoinRanks(*part, logit_rows, *logits_);
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> Linear(const Checkpoint& checkpoint, const std::string& prefix,
                                                       std::vector<std::string> names,
                                                       InputPrecision precision = InputPrecision::kUsual,
                                                       bool biased = false);
  absl::StatusOr<std::unique_ptr<VectorWeight>> Vector(const Checkpoint& checkpoint, const std::string& name);
  absl::StatusOr<Layer> LoadLayer(const Checkpoint& checkpoint, int index);

  const ModelConfig config_;  // Of the shard, but for the vocabulary.
  const Shard shard_;
  Ops& ops_;
  std::unique_ptr<EmbeddingTable> embedding_;
  std::vector<Layer> layers_;
  std::unique_ptr<VectorWeight> final_norm_;
  std::unique_ptr<LinearWeight> lm_head_;
  // [max_rows, ...]: residual stream, its norm, [q | k | v], attention output, [gate | up], their
  // product.
  std::unique_ptr<Activation> hidden_, normed_, qkv_, attended_, gate_up_, activated_, router_logits_;
  std::unique_ptr<Activation> last_hidden_, last_qkv_, last_normed_, logits_;  // [max_logit_rows, ...]
  // What ranks give each other; null where there is one. Two in turn for the residual stream.
  std::unique_ptr<Activation> attention_summand_, mlp_summand_, logits_part_;
};

absl::StatusOr<std::unique_ptr<LinearWeight>> GqaDecoder::Linear(const Checkpoint& checkpoint,
                                                                 const std::string& prefix,
                                                                 std::vector<std::string> names,
                                                                 InputPrecision precision, bool biased) {
  std::vector<TensorView> parts, biases;
  std::vector<uint8_t> columns;  // Of the only part, where one is cut along them.
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(TensorView part, checkpoint.FindTensor(prefix + name));
    const Cut cut = shard_.size == 1 ? Cut::kNone : name == "embedding" ? Cut::kRows : CutOf(prefix + name);
    if (cut == Cut::kRows) part = ShardRows(part, shard_);
    if (cut == Cut::kColumns) part = ShardColumns(part, shard_, columns);
    parts.push_back(std::move(part));
    if (!biased) continue;
    ASSIGN_OR_RETURN(TensorView bias, checkpoint.FindTensor(prefix + name + ".bias"));
    biases.push_back(cut == Cut::kRows ? ShardRows(bias, shard_) : std::move(bias));
  }
  return ops_.PrepareLinear(parts, biases, precision);
}

absl::StatusOr<std::unique_ptr<VectorWeight>> GqaDecoder::Vector(const Checkpoint& checkpoint,
                                                                 const std::string& name) {
  ASSIGN_OR_RETURN(TensorView tensor, checkpoint.FindTensor(name));
  return ops_.PrepareVector(tensor);
}

absl::StatusOr<Layer> GqaDecoder::LoadLayer(const Checkpoint& checkpoint, int index) {
  Layer layer;
  const std::string prefix = absl::StrCat("layers.", index, ".");
  ASSIGN_OR_RETURN(layer.attention_norm, Vector(checkpoint, prefix + "attention_norm"));
  ASSIGN_OR_RETURN(layer.mlp_norm, Vector(checkpoint, prefix + "mlp_norm"));
  if (config_.qk_norm) {
    ASSIGN_OR_RETURN(layer.q_norm, Vector(checkpoint, prefix + "q_norm"));
    ASSIGN_OR_RETURN(layer.k_norm, Vector(checkpoint, prefix + "k_norm"));
  }
  ASSIGN_OR_RETURN(layer.qkv,
                   Linear(checkpoint, prefix, {"q", "k", "v"}, InputPrecision::kSensitive, config_.qkv_bias));
  ASSIGN_OR_RETURN(layer.o, Linear(checkpoint, prefix, {"o"}));
  if (!config_.moe.IsSparse(index)) {
    ASSIGN_OR_RETURN(layer.gate_up, Linear(checkpoint, prefix, {"gate", "up"}));
    ASSIGN_OR_RETURN(layer.down, Linear(checkpoint, prefix, {"down"}));
    return layer;
  }
  ASSIGN_OR_RETURN(layer.router, Linear(checkpoint, prefix, {"router"}));
  layer.moe.experts_per_token = config_.moe.experts_per_token;
  layer.moe.normalise_top_k = config_.moe.normalise_top_k;
  for (int expert = 0; expert < config_.moe.num_experts; ++expert) {
    const std::string expert_prefix = absl::StrCat(prefix, "experts.", expert, ".");
    ASSIGN_OR_RETURN(auto gate_up, Linear(checkpoint, expert_prefix, {"gate", "up"}));
    ASSIGN_OR_RETURN(auto down, Linear(checkpoint, expert_prefix, {"down"}));
    layer.moe.gate_up.push_back(std::move(gate_up));
    layer.moe.down.push_back(std::move(down));
  }
  return layer;
}

absl::Status GqaDecoder::Load(const Checkpoint& checkpoint, int max_rows, int max_logit_rows) {
  ASSIGN_OR_RETURN(TensorView embedding, checkpoint.FindTensor("embedding"));
  ASSIGN_OR_RETURN(embedding_, ops_.PrepareEmbedding(embedding));
  ASSIGN_OR_RETURN(final_norm_, Vector(checkpoint, "final_norm"));
  ASSIGN_OR_RETURN(lm_head_, Linear(checkpoint, "", {config_.tied_embeddings ? "embedding" : "lm_head"},
                                    InputPrecision::kSensitive));
  for (int i = 0; i < config_.num_layers; ++i) {
    ASSIGN_OR_RETURN(Layer layer, LoadLayer(checkpoint, i));
    layers_.push_back(std::move(layer));
  }
  const int q_width = config_.num_heads * config_.head_dim;
  constexpr ActivationType kWorking = ActivationType::kWorking, kFloat = ActivationType::kFloat;
  const int kv_width = config_.num_kv_heads * config_.head_dim;
  ASSIGN_OR_RETURN(hidden_, ops_.NewActivation(max_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(normed_, ops_.NewActivation(max_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(qkv_, ops_.NewActivation(max_rows, q_width + 2 * kv_width, kWorking));
  ASSIGN_OR_RETURN(attended_, ops_.NewActivation(max_rows, q_width, kWorking));
  ASSIGN_OR_RETURN(gate_up_, ops_.NewActivation(max_rows, 2 * config_.intermediate_size, kWorking));
  ASSIGN_OR_RETURN(activated_, ops_.NewActivation(max_rows, config_.intermediate_size, kWorking));
  ASSIGN_OR_RETURN(router_logits_, ops_.NewActivation(max_rows, std::max(1, config_.moe.num_experts), kFloat));
  ASSIGN_OR_RETURN(last_hidden_, ops_.NewActivation(max_logit_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(last_qkv_, ops_.NewActivation(max_logit_rows, q_width + 2 * kv_width, kWorking));
  ASSIGN_OR_RETURN(last_normed_, ops_.NewActivation(max_logit_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(logits_, ops_.NewActivation(max_logit_rows, config_.vocab_size, kFloat));
  if (shard_.size == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(attention_summand_, ops_.NewSharedActivation(max_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(mlp_summand_, ops_.NewSharedActivation(max_rows, config_.hidden_size, kWorking));
  ASSIGN_OR_RETURN(logits_part_, ops_.NewSharedActivation(max_logit_rows, config_.vocab_size / shard_.size, kFloat));
  return absl::OkStatus();
}

}  // namespace

KvLayout KvShape(const ModelConfig& config) {
  return {.num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .num_planes = 2};
}

absl::StatusOr<std::unique_ptr<DecoderModel>> LoadDecoderModel(const Checkpoint& checkpoint, const Shard& shard,
                                                               Ops& ops, int max_rows, int max_logit_rows) {
  switch (checkpoint.config().family) {
    case ModelFamily::kLlama:
    case ModelFamily::kQwen2:
    case ModelFamily::kQwen3:
    case ModelFamily::kQwen3Moe: {
      auto model = std::make_unique<GqaDecoder>(checkpoint.config(), shard, ops);
      RETURN_IF_ERROR(model->Load(checkpoint, max_rows, max_logit_rows));
      return std::unique_ptr<DecoderModel>(std::move(model));
    }
  }
  return absl::UnimplementedError("no code for this model family");
}

}  // namespace tandem
