#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/kv_layout.h"
#include "engine/sampling.h"
#include "model/model_config.h"
#include "model/tensor.h"

namespace tandem {

// Activations of a step: [rows, columns], rows are tokens. The element type and where the memory
// lies are the backend's own; model code only passes tensors from op to op.
//
// Ownership: owns its memory through the backend that made it, which must outlive it.
class Activation {
 public:
  virtual ~Activation() = default;
  int64_t columns() const { return columns_; }
  int64_t max_rows() const { return max_rows_; }

 protected:
  Activation(int64_t max_rows, int64_t columns) : max_rows_(max_rows), columns_(columns) {}

 private:
  const int64_t max_rows_, columns_;
};

// A weight matrix [out, in] in the form that the backend computes with, with an optional bias
// [out].
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }

 protected:
  LinearWeight(int64_t out, int64_t in) : out_(out), in_(in) {}

 private:
  const int64_t out_, in_;
};

// A weight vector, as of a norm.
class VectorWeight {
 public:
  virtual ~VectorWeight() = default;
};

// One sequence's part of a step: `num_rows` consecutive rows, the last tokens of a context of
// `context_tokens` (so the first of its rows has position context_tokens - num_rows).
struct BatchSequence {
  int first_row = 0;
  int num_rows = 0;
  int context_tokens = 0;
  absl::Span<const PageIndex> pages;  // Covers the whole context.
};

// What one engine step computes, for all its sequences.
struct StepBatch {
  std::vector<TokenId> tokens;     // [rows]
  std::vector<int32_t> positions;  // [rows]
  std::vector<BatchSequence> sequences;
  std::vector<int32_t> logit_rows;  // Rows whose logits are wanted, ascending.
  int rows() const { return static_cast<int>(tokens.size()); }
};

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
};

// Query and key heads are normalised before rotation where these are set (Qwen3).
struct QkNorm {
  const VectorWeight* q = nullptr;
  const VectorWeight* k = nullptr;
  float epsilon = 0;
};

struct MoeWeights {
  // Per expert: gate and up projections stacked [2 * width, hidden], and down [hidden, width].
  std::vector<std::unique_ptr<LinearWeight>> gate_up, down;
  int experts_per_token = 0;
  bool normalise_top_k = false;
};

// How much rounding of its input a linear layer bears where a backend computes with 8-bit
// activations.
enum class InputPrecision {
  kUsual,
  kSensitive,  // Attention scores and logits: small errors here change which token is best.
};

// The operations that model families are written in, once for all backends. A new fused operation
// gets a default made of the old ones here, not a branch in a model. Rows that an op works on are
// the first batch.rows() of each activation (or `rows` where it says so).
//
// Thread-safety: one thread (the engine's); a backend may compute on threads of its own.
// Ownership: weights and activations belong to the caller and must go before the backend.
class Ops {
 public:
  virtual ~Ops() = default;

  // Stacks `parts` by rows into one matrix (q, k and v become one). `biases` is empty or as long as
  // parts. INVALID_ARGUMENT for unlike widths; UNIMPLEMENTED for an encoding this backend does not
  // compute with.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(absl::Span<const TensorView> parts,
                                                                      absl::Span<const TensorView> biases,
                                                                      InputPrecision precision) = 0;
  virtual absl::StatusOr<std::unique_ptr<VectorWeight>> PrepareVector(const TensorView& tensor) = 0;
  virtual std::unique_ptr<Activation> NewActivation(int64_t max_rows, int64_t columns) = 0;

  // Starts a step: prepares what depends on positions and pages only.
  virtual void BeginStep(const StepBatch& batch, const RopeConfig& rope, const AttentionShape& shape) = 0;
  // out[i] = row tokens[i] of the embedding table, which stays as it lies in the checkpoint.
  virtual void Embed(const TensorView& table, absl::Span<const TokenId> tokens, Activation& out) = 0;
  // out = in / rms(in) * weight, per row.
  virtual void RmsNorm(const Activation& in, const VectorWeight& weight, float epsilon, int rows, Activation& out) = 0;
  // out = in W^T + bias; with `add`, out += that.
  virtual void Linear(const Activation& in, const LinearWeight& weight, int rows, bool add, Activation& out) = 0;
  // Splits qkv rows [q heads | k heads | v heads], normalises and rotates q (in place) and k, and
  // writes k and v to their slots in the pages of `layer`.
  virtual void RopeAndAppendKv(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv) = 0;
  // Causal attention of each row's q heads over its sequence's pages, scaled by 1 / sqrt(head_dim).
  virtual void PagedAttention(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) = 0;
  // out = silu(gate) * up, of rows [gate | up].
  virtual void SiluMul(const Activation& gate_up, int rows, Activation& out) = 0;
  // out += sum over each row's chosen experts of weight * down(silu_mul(gate_up(in))).
  virtual void Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights,
                   Activation& out) = 0;
  // out[i] = in[rows[i]].
  virtual void GatherRows(const Activation& in, absl::Span<const int32_t> rows, Activation& out) = 0;
  // Chooses a token for each row of `logits`; results in order of rows.
  virtual std::vector<SampledToken> Sample(const Activation& logits, absl::Span<const SampleInput> inputs) = 0;
};

}  // namespace tandem
