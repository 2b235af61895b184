#include "engine/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/packed_matrix.h"
#include "engine/cpu/thread_pool.h"
#include "model/weight_shard.h"

namespace tandem {
namespace {

constexpr int64_t kQueryRowsPerTask = 8;

class CpuActivation final : public Activation {
 public:
  CpuActivation(int64_t max_rows, int64_t columns)
      // 16 floats more: kernels may load a whole vector at the last element.
      : Activation(max_rows, columns), values_(max_rows * columns + 16) {}
  float* row(int64_t index) { return values_.data() + index * columns(); }
  const float* row(int64_t index) const { return values_.data() + index * columns(); }

 private:
  std::vector<float> values_;
};

class CpuVector final : public VectorWeight {
 public:
  explicit CpuVector(std::vector<float> values) : values_(std::move(values)) {}
  const float* data() const { return values_.data(); }

 private:
  const std::vector<float> values_;
};

// Stays as it lies in the checkpoint.
class CpuEmbedding final : public EmbeddingTable {
 public:
  explicit CpuEmbedding(TensorView table) : table_(std::move(table)) {}
  const TensorView& table() const { return table_; }

 private:
  const TensorView table_;
};

CpuActivation& Cpu(Activation& activation) { return static_cast<CpuActivation&>(activation); }
const CpuActivation& Cpu(const Activation& activation) { return static_cast<const CpuActivation&>(activation); }
const float* Data(const VectorWeight& weight) { return static_cast<const CpuVector&>(weight).data(); }

float* Scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats + 16) memory.resize(floats + 16);
  uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - address % 64) % 64 / sizeof(float);
}

// The sequence that a row is of.
const BatchSequence& SequenceOf(const StepBatch& batch, int row) {
  return *std::prev(std::partition_point(batch.sequences.begin(), batch.sequences.end(),
                                         [row](const BatchSequence& sequence) { return sequence.first_row <= row; }));
}

class CpuOps final : public Ops {
 public:
  CpuOps(int num_threads, Precision precision, RankGroup* ranks)
      : kernels_(ChooseKernels()), precision_(precision), ranks_(ranks), pool_(num_threads) {}

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(absl::Span<const TensorView> parts,
                                                              absl::Span<const TensorView> biases,
                                                              InputPrecision precision) override {
    ASSIGN_OR_RETURN(std::unique_ptr<PackedLinear> linear, PackedLinear::Pack(parts, biases, precision_, precision));
    return std::unique_ptr<LinearWeight>(std::move(linear));
  }

  absl::StatusOr<std::unique_ptr<VectorWeight>> PrepareVector(const TensorView& tensor) override {
    std::vector<float> values(tensor.num_elements());
    DequantizeRow(tensor, 0, tensor.num_elements(), values.data());
    return std::unique_ptr<VectorWeight>(std::make_unique<CpuVector>(std::move(values)));
  }

  absl::StatusOr<std::unique_ptr<EmbeddingTable>> PrepareEmbedding(const TensorView& tensor) override {
    return std::unique_ptr<EmbeddingTable>(std::make_unique<CpuEmbedding>(tensor));
  }

  absl::StatusOr<std::unique_ptr<Activation>> NewActivation(int64_t max_rows, int64_t columns,
                                                            ActivationType) override {
    return std::unique_ptr<Activation>(std::make_unique<CpuActivation>(max_rows, columns));
  }
  absl::StatusOr<std::unique_ptr<Activation>> NewSharedActivation(int64_t max_rows, int64_t columns,
                                                                  ActivationType type) override {
    return NewActivation(max_rows, columns, type);
  }

  void RunStep(const StepBatch& batch, const RopeConfig& rope, const AttentionShape& shape,
               absl::FunctionRef<void()> body) override {
    BeginStep(batch, rope, shape);
    body();
  }

  void BeginStep(const StepBatch& batch, const RopeConfig& rope, const AttentionShape& shape) {
    batch_ = &batch;
    tokens_ = batch.tokens;
    for (TokenId& token : tokens_) {
      if (IsUnknown(token)) token = last_sampled_[SampleOf(token)];
    }
    shape_ = shape;
    pairing_ = rope.pairing;
    if (frequencies_.size() != shape.head_dim / 2) frequencies_ = rope.InverseFrequencies(shape.head_dim);
    const int half = shape.head_dim / 2;
    cos_.resize(batch.rows() * half);
    sin_.resize(batch.rows() * half);
    pool_.ParallelFor(batch.rows(), [&](int64_t row) {
      for (int i = 0; i < half; ++i) {
        double angle = batch.positions[row] * frequencies_[i];
        cos_[row * half + i] = static_cast<float>(std::cos(angle));
        sin_[row * half + i] = static_cast<float>(std::sin(angle));
      }
    });
    tasks_.clear();
    for (int s = 0; s < batch.sequences.size(); ++s) {
      for (int row = 0; row < batch.sequences[s].num_rows; row += kQueryRowsPerTask) {
        for (int head = 0; head < shape.num_kv_heads; ++head) tasks_.push_back({s, row, head});
      }
    }
    // Later rows see more tokens: starting with them keeps all threads busy to the end.
    std::reverse(tasks_.begin(), tasks_.end());
  }

  void Embed(const EmbeddingTable& embedding, Activation& out) override {
    const TensorView& table = static_cast<const CpuEmbedding&>(embedding).table();
    for (size_t i = 0; i < tokens_.size(); ++i) DequantizeRow(table, tokens_[i], table.columns(), Cpu(out).row(i));
  }

  void RmsNorm(const Activation& in, const VectorWeight& weight, float epsilon, int rows, Activation& out) override {
    pool_.ParallelFor(Chunks(rows), [&](int64_t chunk) {
      for (int64_t row = chunk * kRowsPerChunk; row < std::min<int64_t>(rows, (chunk + 1) * kRowsPerChunk); ++row) {
        kernels_.rms_norm(Cpu(in).row(row), Data(weight), epsilon, in.columns(), Cpu(out).row(row));
      }
    });
  }

  void Linear(const Activation& in, const LinearWeight& weight, int rows, bool add, Activation& out) override {
    LinearRows(Cpu(in).row(0), in.columns(), static_cast<const PackedLinear&>(weight), rows, add, Cpu(out).row(0),
               out.columns());
  }

  void RopeAndAppendKv(Activation& qkv, const QkNorm& norm, int layer, const KvPoolView& kv) override {
    const int dim = shape_.head_dim;
    pool_.ParallelFor(batch_->sequences.size(), [&](int64_t s) {
      const BatchSequence& sequence = batch_->sequences[s];
      for (int r = 0; r < sequence.num_rows; ++r) {
        const int64_t row = sequence.first_row + r;
        const int position = sequence.context_tokens - sequence.num_rows + r;
        float* heads = Cpu(qkv).row(row);
        for (int head = 0; head < shape_.num_heads; ++head)
          NormAndRotate(heads + head * dim, norm.q, norm.epsilon, row);
        float* k = heads + shape_.num_heads * dim;
        float* v = k + shape_.num_kv_heads * dim;
        const PageIndex page = sequence.pages[position / kv.layout.page_tokens];
        const int64_t slot = int64_t{position % kv.layout.page_tokens} * dim * kv.layout.element_bytes;
        for (int head = 0; head < shape_.num_kv_heads; ++head) {
          NormAndRotate(k + head * dim, norm.k, norm.epsilon, row);
          kernels_.store_kv(k + head * dim, dim, kv.layout.element_bytes,
                            kv.base + kv.layout.HeadOffset(page, layer, 0, head) + slot);
          kernels_.store_kv(v + head * dim, dim, kv.layout.element_bytes,
                            kv.base + kv.layout.HeadOffset(page, layer, 1, head) + slot);
        }
      }
    });
  }

  void PagedAttention(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) override {
    pool_.ParallelFor(tasks_.size(), [&](int64_t index) {
      const auto& [s, first, kv_head] = tasks_[index];
      const BatchSequence& sequence = batch_->sequences[s];
      AttentionTask task = HeadTask(qkv, sequence.first_row + first, layer, kv, kv_head, out);
      task.num_rows = std::min<int>(kQueryRowsPerTask, sequence.num_rows - first);
      task.first_position = sequence.context_tokens - sequence.num_rows + first;
      task.pages = sequence.pages.data();
      kernels_.attention(task, Scratch(AttentionScratchFloats(task)));
    });
  }

  void AttendLogitRows(const Activation& qkv, int layer, const KvPoolView& kv, Activation& out) override {
    const std::vector<int32_t>& rows = batch_->logit_rows;
    pool_.ParallelFor(static_cast<int64_t>(rows.size()) * shape_.num_kv_heads, [&](int64_t index) {
      const int64_t i = index / shape_.num_kv_heads;
      AttentionTask task =
          HeadTask(qkv, static_cast<int>(i), layer, kv, static_cast<int>(index % shape_.num_kv_heads), out);
      task.num_rows = 1;
      task.first_position = batch_->positions[rows[i]];
      task.pages = SequenceOf(*batch_, rows[i]).pages.data();
      kernels_.attention(task, Scratch(AttentionScratchFloats(task)));
    });
  }

  void SiluMul(const Activation& gate_up, int rows, Activation& out) override {
    SiluMulRows(Cpu(gate_up).row(0), gate_up.columns() / 2, rows, Cpu(out).row(0));
  }

  void Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights, int rows,
           Activation& out) override;

  void GatherLogitRows(const Activation& in, Activation& out) override {
    const std::vector<int32_t>& rows = batch_->logit_rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(Cpu(out).row(i), Cpu(in).row(rows[i]), in.columns() * sizeof(float));
    }
  }

  void AddRanks(const Activation& summand, int rows, Activation& out) override {
    const std::vector<std::string> parts = Exchange(summand, rows);
    std::vector<float> values(rows * out.columns());
    for (const std::string& part : parts) {
      std::memcpy(values.data(), part.data(), part.size());
      for (size_t i = 0; i < values.size(); ++i) Cpu(out).row(0)[i] += values[i];
    }
  }

  void JoinRanks(const Activation& part, int rows, Activation& out) override {
    const std::vector<std::string> parts = Exchange(part, rows);
    const int64_t columns = part.columns();
    for (size_t rank = 0; rank < parts.size(); ++rank) {
      for (int row = 0; row < rows; ++row) {
        std::memcpy(Cpu(out).row(row) + rank * columns, parts[rank].data() + row * columns * sizeof(float),
                    columns * sizeof(float));
      }
    }
  }

  void ShareSamples(int rows) override {
    last_sampled_.resize(rows);
    const std::string tokens = ExchangeBytes(last_sampled_.data(), rows * sizeof(TokenId)).front();
    std::memcpy(last_sampled_.data(), tokens.data(), tokens.size());
  }

  void Clear(int rows, Activation& out) override { std::fill_n(Cpu(out).row(0), rows * out.columns(), 0.0f); }

  bool SamplesAhead(const SamplingParams& params) const override {
    return !HasPenalties(params) && params.format == nullptr;
  }

  void StartSample(const Activation& logits, absl::Span<const SampleInput> inputs) override {
    std::vector<SampledToken> tokens(inputs.size());
    pool_.ParallelFor(inputs.size(), [&](int64_t row) {
      // Sampling may overwrite the row; nobody reads it again.
      float* values = const_cast<float*>(Cpu(logits).row(row));
      tokens[row] = SampleToken(absl::MakeSpan(values, logits.columns()), inputs[row]);
    });
    last_sampled_.clear();
    for (const SampledToken& token : tokens) last_sampled_.push_back(token.token);
    sampled_.push_back(std::move(tokens));
  }

  std::vector<SampledToken> CollectSamples() override {
    std::vector<SampledToken> tokens = std::move(sampled_.front());
    sampled_.pop_front();
    return tokens;
  }

 private:
  static constexpr int64_t kTasksPerThread = 8;  // Of a matrix: enough to even out threads that were held up.
  static constexpr int64_t kRowsPerChunk = 16;
  static int64_t Chunks(int64_t rows) { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }

  struct Task {
    int sequence, first_row, kv_head;
  };

  // The first rows of every rank's activation, as it lies in memory.
  std::vector<std::string> Exchange(const Activation& own, int rows) {
    return ExchangeBytes(Cpu(own).row(0), rows * own.columns() * sizeof(float));
  }
  std::vector<std::string> ExchangeBytes(const void* own, size_t bytes) {
    absl::StatusOr<std::vector<std::string>> all =
        ranks_->Exchange(absl::string_view(static_cast<const char*>(own), bytes));
    if (!all.ok()) RankGroup::EndProcess(all.status());
    return *std::move(all);
  }

  // Attention of a KV head's query heads, from this row of `qkv` and `out` on; rows, positions and pages are missing.
  AttentionTask HeadTask(const Activation& qkv, int row, int layer, const KvPoolView& kv, int kv_head,
                         Activation& out) const {
    const int group = shape_.num_heads / shape_.num_kv_heads, first = kv_head * group * shape_.head_dim;
    AttentionTask task;
    task.q = Cpu(qkv).row(row) + first;
    task.q_stride = qkv.columns();
    task.out = Cpu(out).row(row) + first;
    task.out_stride = out.columns();
    task.group_heads = group;
    task.kv = kv;
    task.layer = layer;
    task.kv_head = kv_head;
    return task;
  }

  void NormAndRotate(float* head, const VectorWeight* norm, float epsilon, int64_t row) {
    const int dim = shape_.head_dim, half = dim / 2;
    if (norm != nullptr) kernels_.rms_norm(head, Data(*norm), epsilon, dim, head);
    const float* cos = cos_.data() + row * half;
    const float* sin = sin_.data() + row * half;
    const bool adjacent = pairing_ == RopeConfig::Pairing::kAdjacent;
    for (int i = 0; i < half; ++i) {
      float& x = adjacent ? head[2 * i] : head[i];
      float& y = adjacent ? head[2 * i + 1] : head[i + half];
      float turned_x = x * cos[i] - y * sin[i];
      y = x * sin[i] + y * cos[i];
      x = turned_x;
    }
  }

  void LinearRows(const float* in, int64_t in_stride, const PackedLinear& linear, int64_t rows, bool add, float* out,
                  int64_t out_stride) {
    for (const auto& matrix : linear.matrices()) {
      MatrixRows(in, in_stride, *matrix, rows, add, out, out_stride);
      out += matrix->out();
    }
  }

  void MatrixRows(const float* in, int64_t in_stride, const PackedMatrix& weight, int64_t rows, bool add, float* out,
                  int64_t out_stride) {
    QuantisedRows quantised;
    if (weight.is_quantised()) quantised = QuantiseRows(in, in_stride, weight, rows);
    // A thread takes panels that lie one behind the other, so that the processor sees a stream.
    const int64_t panels = std::max<int64_t>(1, weight.num_panels / (kTasksPerThread * pool_.num_threads()));
    pool_.ParallelFor((weight.num_panels + panels - 1) / panels, [&](int64_t task) {
      for (int64_t panel = task * panels; panel < std::min(weight.num_panels, (task + 1) * panels); ++panel) {
        PanelOutput to{.out = out + panel * kPanelRows, .out_stride = out_stride, .add = add};
        to.num_outputs = static_cast<int>(std::min<int64_t>(kPanelRows, weight.out() - panel * kPanelRows));
        if (weight.is_quantised()) {
          kernels_.quantised_panel(weight, panel, quantised, 0, rows, to);
        } else {
          kernels_.float_panel(weight, panel, in, in_stride, rows, to);
        }
      }
    });
  }

  QuantisedRows QuantiseRows(const float* in, int64_t in_stride, const PackedMatrix& weight, int64_t rows) {
    const int64_t columns = weight.in(), group = weight.group_columns;
    const int planes = weight.two_planes ? 2 : 1;
    if (values_.size() < planes * rows * columns) values_.resize(planes * rows * columns);
    if (scales_.size() < rows * columns / kActivationGroup) scales_.resize(rows * columns / kActivationGroup);
    if (sums_.size() < rows * columns / group) sums_.resize(rows * columns / group);
    pool_.ParallelFor(Chunks(rows), [&](int64_t chunk) {
      for (int64_t row = chunk * kRowsPerChunk; row < std::min(rows, (chunk + 1) * kRowsPerChunk); ++row) {
        kernels_.quantise_row(in + row * in_stride, columns, static_cast<int>(group), values_.data() + row * columns,
                              weight.two_planes ? values_.data() + (rows + row) * columns : nullptr,
                              scales_.data() + row * columns / kActivationGroup, sums_.data() + row * columns / group);
      }
    });
    return {values_.data(), scales_.data(), sums_.data(), columns, static_cast<int>(group), rows * columns};
  }

  void SiluMulRows(const float* gate_up, int64_t width, int64_t rows, float* out) {
    pool_.ParallelFor(Chunks(rows), [&](int64_t chunk) {
      for (int64_t row = chunk * kRowsPerChunk; row < std::min(rows, (chunk + 1) * kRowsPerChunk); ++row) {
        kernels_.silu_mul(gate_up + row * 2 * width, gate_up + row * 2 * width + width, width, out + row * width);
      }
    });
  }

  const Kernels& kernels_;
  const Precision precision_;
  RankGroup* const ranks_;
  ThreadPool pool_;

  // Of the step that BeginStep started.
  const StepBatch* batch_ = nullptr;
  std::vector<TokenId> tokens_;  // All known.
  AttentionShape shape_;
  RopeConfig::Pairing pairing_ = RopeConfig::Pairing::kHalves;
  std::vector<double> frequencies_;
  std::vector<float> cos_, sin_;  // [rows][head_dim / 2]
  std::vector<Task> tasks_;
  std::vector<TokenId> last_sampled_;
  std::deque<std::vector<SampledToken>> sampled_;  // Not collected.

  // Quantised activations of the linear layer that runs now; they grow to the largest and stay.
  std::vector<int8_t> values_;
  std::vector<float> scales_, sums_;
  // Rows gathered for one expert.
  std::vector<float> expert_in_, expert_gate_up_, expert_hidden_, expert_out_;
};

struct ExpertChoice {
  int row;
  float weight;
};

// Softmax over all experts, then the best k; ties go to the lower expert.
std::vector<std::vector<ExpertChoice>> RouteTokens(const CpuActivation& logits, int rows, const MoeWeights& weights) {
  const int num_experts = static_cast<int>(weights.down.size());
  std::vector<std::vector<ExpertChoice>> by_expert(num_experts);
  std::vector<float> probabilities(num_experts);
  std::vector<int> order(num_experts);
  for (int row = 0; row < rows; ++row) {
    const float* values = logits.row(row);
    float top = *std::max_element(values, values + num_experts), sum = 0;
    for (int e = 0; e < num_experts; ++e) sum += probabilities[e] = std::exp(values[e] - top);
    for (int e = 0; e < num_experts; ++e) order[e] = e;
    auto best_end = order.begin() + weights.experts_per_token;
    std::partial_sort(order.begin(), best_end, order.end(), [&](int a, int b) {
      return probabilities[a] != probabilities[b] ? probabilities[a] > probabilities[b] : a < b;
    });
    float chosen_sum = 0;
    for (auto it = order.begin(); it != best_end; ++it) chosen_sum += probabilities[*it];
    for (auto it = order.begin(); it != best_end; ++it) {
      by_expert[*it].push_back({row, probabilities[*it] / (weights.normalise_top_k ? chosen_sum : sum)});
    }
  }
  return by_expert;
}

void CpuOps::Moe(const Activation& in, const Activation& router_logits, const MoeWeights& weights, int num_rows,
                 Activation& out) {
  std::vector<std::vector<ExpertChoice>> by_expert = RouteTokens(Cpu(router_logits), num_rows, weights);
  const int64_t hidden = in.columns();
  // Experts in ascending order, so that a row's sum does not depend on the other rows.
  for (size_t expert = 0; expert < by_expert.size(); ++expert) {
    const std::vector<ExpertChoice>& choices = by_expert[expert];
    if (choices.empty()) continue;
    const auto& gate_up = static_cast<const PackedLinear&>(*weights.gate_up[expert]);
    const auto& down = static_cast<const PackedLinear&>(*weights.down[expert]);
    const int64_t rows = static_cast<int64_t>(choices.size()), width = gate_up.out() / 2;
    expert_in_.resize(rows * hidden + 16);
    expert_gate_up_.resize(rows * 2 * width + 16);
    expert_hidden_.resize(rows * width + 16);
    expert_out_.resize(rows * hidden + 16);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(expert_in_.data() + i * hidden, Cpu(in).row(choices[i].row), hidden * sizeof(float));
    }
    LinearRows(expert_in_.data(), hidden, gate_up, rows, /*add=*/false, expert_gate_up_.data(), 2 * width);
    SiluMulRows(expert_gate_up_.data(), width, rows, expert_hidden_.data());
    LinearRows(expert_hidden_.data(), width, down, rows, /*add=*/false, expert_out_.data(), hidden);
    for (int64_t i = 0; i < rows; ++i) {
      float* to = Cpu(out).row(choices[i].row);
      const float* from = expert_out_.data() + i * hidden;
      for (int64_t c = 0; c < hidden; ++c) to[c] += choices[i].weight * from[c];
    }
  }
}

}  // namespace

std::unique_ptr<Ops> NewCpuOps(int num_threads, Precision precision, RankGroup* ranks) {
  return std::make_unique<CpuOps>(num_threads, precision, ranks);
}

int64_t CpuWeightBytes(const Checkpoint& checkpoint, Precision precision, int ranks) {
  const bool is_tied = checkpoint.config().tied_embeddings;
  int64_t bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (tensor.shape.size() < 2) {
      bytes += tensor.num_elements() * static_cast<int64_t>(sizeof(float));
    } else if (name != (is_tied ? "lm_head" : "embedding")) {  // The one that is not packed.
      const bool is_cut = name == "embedding" || CutOf(name) != Cut::kNone;
      bytes += PackedBytes(tensor, precision) / (is_cut ? ranks : 1);
    }
  }
  return bytes;
}

absl::Status CheckCpuSettings() { return CheckKernelChoice(); }

const char* CpuKernelsName() { return ChooseKernels().name; }

}  // namespace tandem
