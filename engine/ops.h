#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/kv_layout.h"
#include "common/source_event.h"
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

// The embedding table [vocabulary, hidden].
class EmbeddingTable {
 public:
  virtual ~EmbeddingTable() = default;
};

// One sequence's part of a step: `num_rows` consecutive rows, the last tokens of a context of
// `context_tokens` (so the first of its rows has position context_tokens - num_rows).
struct BatchSequence {
  int first_row = 0;
  int num_rows = 0;
  int context_tokens = 0;
  absl::Span<const PageIndex> pages;  // Covers the whole context.
};

// In place of a token that was sampled by the step before and is not known to the host yet: which of that step's
// samples it is.
constexpr TokenId UnknownToken(int sample) { return -1 - sample; }
constexpr bool IsUnknown(TokenId token) { return token < 0; }
constexpr int SampleOf(TokenId unknown) { return -1 - unknown; }

// What one engine step computes, for all its sequences.
struct StepBatch {
  std::vector<TokenId> tokens;     // [rows], some perhaps UnknownToken.
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

// The element type of activations: the backend's own, or f32 for what is compared and sampled from.
enum class ActivationType { kWorking, kFloat };

// The operations that model families are written in, once for all backends. A new fused operation
// gets a default made of the old ones here, not a branch in a model. Rows that an op works on are
// the first batch.rows() of each activation (or `rows` where it says so).
//
// Ops only order work: a device carries it out later, in order. Results come to the host through CollectSamples, and
// through the events of MarkProgress.
//
// Thread-safety: one thread (the engine's); a backend may compute on threads of its own.
// Ownership: weights and activations belong to the caller and must go before the backend.
class Ops {
 public:
  virtual ~Ops() = default;

  // Stacks `parts` by rows into one matrix (q, k and v become one). `biases` is empty or as long as
  // parts. INVALID_ARGUMENT for unlike widths; UNIMPLEMENTED for an encoding this backend does not
  // compute with; RESOURCE_EXHAUSTED: the device's memory is full.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(absl::Span<const TensorView> parts,
                                                                      absl::Span<const TensorView> biases,
                                                                      InputPrecision precision) = 0;
  virtual absl::StatusOr<std::unique_ptr<VectorWeight>> PrepareVector(const TensorView& tensor) = 0;
  virtual absl::StatusOr<std::unique_ptr<EmbeddingTable>> PrepareEmbedding(const TensorView& tensor) = 0;
  // RESOURCE_EXHAUSTED: the device's memory is full.
  virtual absl::StatusOr<std::unique_ptr<Activation>> NewActivation(int64_t max_rows, int64_t columns,
                                                                    ActivationType type) = 0;

  // An activation that the ops between ranks (below) read on other ranks. All ranks call, in the same order.
  virtual absl::StatusOr<std::unique_ptr<Activation>> NewSharedActivation(int64_t max_rows, int64_t columns,
                                                                          ActivationType type) = 0;

  // Runs the ops of a step, which `body` orders, after preparing what depends on tokens, positions and pages only. A
  // backend that has recorded a step of this shape carries that out and does not call `body`.
  virtual void RunStep(const StepBatch& batch, const RopeConfig& rope, const AttentionShape& shape,
                       absl::FunctionRef<void()> body) = 0;
  // Records the steps that decode, by running `forward` on made-up batches, which write to no page. Called once, when
  // the KV memory is there; `told` gets progress in [0, 1].
  virtual absl::Status RecordSteps(absl::FunctionRef<void(const StepBatch&)> forward,
                                   absl::FunctionRef<void(double)> told) {
    static_cast<void>(forward), static_cast<void>(told);
    return absl::OkStatus();
  }
  // Waits for all that was ordered, before what it works on goes.
  virtual void Finish() {}
  // When all that was ordered so far is there; null when it is there already.
  virtual std::shared_ptr<const SourceEvent> MarkProgress() { return nullptr; }

  // out[i] = row tokens[i] of the table, of the step's tokens.
  virtual void Embed(const EmbeddingTable& table, Activation& out) = 0;
  // out = in / rms(in) * weight, per row.
  virtual void RmsNorm(const Activation& in, const VectorWeight& weight, float epsilon, int rows, Activation& out) = 0;
  // out = in W^T + bias; with `add`, out += that.
  virtual void Linear(const Activation& in, const LinearWeight& weight, int rows, bool add, Activation& out) = 0;
  // RmsNorm, then Linear of that; leaves anything in `scratch`.
  virtual void NormLinear(const Activation& in, const VectorWeight& norm, float epsilon, const LinearWeight& weight,
                          int rows, Activation& scratch, Activation& out) {
    RmsNorm(in, norm, epsilon, rows, scratch);
    Linear(scratch, weight, rows, /*add=*/false, out);
  }
  // out = silu(gate) * up of NormLinear with rows [gate | up], which `gate_up` is scratch for.
  virtual void NormGatedLinear(const Activation& in, const VectorWeight& norm, float epsilon,
                               const LinearWeight& weight, int rows, Activation& scratch, Activation& gate_up,
                               Activation& out) {
    NormLinear(in, norm, epsilon, weight, rows, scratch, gate_up);
    SiluMul(gate_up, rows, out);
  }
  // Splits qkv rows [q heads | k heads | v heads], normalises and rotates q (in place) and k, and
  // writes k and v to their slots in the pages of `layer`.
  virtual void RopeAndAppendKv(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv) = 0;
  // Causal attention of each row's q heads over its sequence's pages, scaled by 1 / sqrt(head_dim).
  virtual void PagedAttention(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) = 0;
  // The same of the step's logit rows alone: `qkv` and `out` have a row for each of these. Only in steps with others.
  virtual void AttendLogitRows(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) = 0;
  // RopeAndAppendKv, then PagedAttention; leaves anything in qkv.
  virtual void AppendAndAttend(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv, Activation& out) {
    RopeAndAppendKv(qkv, norm, layer, kv);
    PagedAttention(qkv, layer, kv, out);
  }
  // out = silu(gate) * up, of rows [gate | up].
  virtual void SiluMul(const Activation& gate_up, int rows, Activation& out) = 0;
  // out += sum over each row's chosen experts of weight * down(silu_mul(gate_up(in))).
  virtual void Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights, int rows,
                   Activation& out) = 0;
  // out[i] = in[row], of the step's logit_rows.
  virtual void GatherLogitRows(const Activation& in, Activation& out) = 0;

  // Between the ranks of a tensor-parallel group; all call them, in the same order, of a step with the same rows.
  // What they read is written to again only when another of them, on another activation, has come between.
  //
  // out += the sum of the ranks' summands, the same on all.
  virtual void AddRanks(const Activation& summand, int rows, Activation& out) = 0;
  // Rank 0: out = [part of rank 0 | of rank 1 | ...]; the others only give their parts.
  virtual void JoinRanks(const Activation& part, int rows, Activation& out) = 0;
  // The other ranks get the tokens of rank 0's last StartSample, of `rows` rows, for steps that name them as unknown.
  virtual void ShareSamples(int rows) = 0;
  // out = 0.
  virtual void Clear(int rows, Activation& out) = 0;

  // Whether the next step may be ordered while this token is chosen and not known: nothing that it is chosen by is
  // then on the host only.
  virtual bool SamplesAhead(const SamplingParams& params) const = 0;
  // Chooses a token for each row of `logits`. What inputs point to is read before this returns.
  virtual void StartSample(const Activation& logits, absl::Span<const SampleInput> inputs) = 0;
  // Results of the oldest StartSample that was not collected, in order of rows; waits for the device.
  virtual std::vector<SampledToken> CollectSamples() = 0;
};

}  // namespace tandem
