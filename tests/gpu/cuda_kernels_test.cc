// The kernels of engine/cuda against sums in double precision on the host, on random data.

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/cuda/moe_kernels.h"
#include "engine/cuda/paged_attention.h"
#include "engine/cuda/prefill_attention.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/sample_kernel.h"
#include "engine/cuda/skinny_linear.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_presence.h"

namespace tandem {
namespace {

using Bf16 = __nv_bfloat16;

void Check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Values on the host and on device 0.
template <typename T>
class Both {
 public:
  explicit Both(std::vector<T> values) : host(std::move(values)) {
    EXPECT_EQ(cudaMalloc(&device_, host.size() * sizeof(T) + 16), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  Both(const Both&) = delete;
  ~Both() { cudaFree(device_); }
  T* device() { return static_cast<T*>(device_); }
  // What the device has now.
  std::vector<T> Read() {
    std::vector<T> values(host.size());
    EXPECT_EQ(cudaMemcpy(values.data(), device_, host.size() * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  std::vector<T> host;

 private:
  void* device_ = nullptr;
};

double Value(Bf16 value) { return static_cast<double>(__bfloat162float(value)); }
double Value(float value) { return value; }

class CudaKernelsTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    Check(cudaSetDevice(0));
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, 0));
    multiprocessors_ = properties.multiProcessorCount;
    compute_major_ = properties.major;
    if (compute_major_ < 9) GTEST_SKIP() << "the kernels are for compute capability 9.0 and newer";
  }
  std::vector<Bf16> Random(size_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<Bf16> values(count);
    for (Bf16& value : values) value = __float2bfloat16(normal(random_));
    return values;
  }
  // All that was enqueued is over, well.
  void Finish() {
    Check(cudaGetLastError());
    Check(cudaDeviceSynchronize());
  }
  int multiprocessors_ = 0, compute_major_ = 0;
  std::mt19937 random_{7};
};

// `tolerance`: in units of the root mean square of `wanted`.
template <typename T>
void ExpectNear(const std::vector<T>& got, const std::vector<double>& wanted, double tolerance,
                const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size());
  double squares = 0, worst = 0;
  size_t worst_at = 0;
  for (double value : wanted) squares += value * value;
  const double scale = std::sqrt(squares / static_cast<double>(wanted.size())) + 1e-30;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double off = std::abs(Value(got[i]) - wanted[i]) / (scale + std::abs(wanted[i]));
    if (!(off <= worst)) worst = off, worst_at = i;
  }
  EXPECT_LE(worst, tolerance) << what << ": at " << worst_at << " got " << Value(got[worst_at]) << ", wanted "
                              << wanted[worst_at];
}

struct LinearCase {
  int rows, in, out;
  bool norm, gated, add, bias, is_float;
};

TEST_F(CudaKernelsTest, SkinnyLinearIsThatOfTheHost) {
  std::vector<LinearCase> cases;
  for (int rows : {1, 2, 3, 7, 8, 9, 13, 16}) {
    cases.push_back({rows, 512, 256, true, false, false, false, false});
    cases.push_back({rows, 96, 304, false, false, false, false, true});
    cases.push_back({rows, 1024, 4096, true, true, false, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false, false});
    cases.push_back({rows, 224, 96, false, false, true, true, false});
    cases.push_back({rows, 576, 2112, true, false, false, true, false});
    cases.push_back({rows, 4096, 6144, true, false, false, false, false});
  }
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    const int columns = c.gated ? c.out / 2 : c.out;
    Both<Bf16> weight(Random(size_t(c.out) * c.in, 1 / std::sqrt(float(c.in)))), in(Random(size_t(c.rows) * c.in)),
        norm(Random(c.in)), bias(Random(c.out)), out(Random(size_t(c.rows) * columns));
    Both<float> floats(std::vector<float>(size_t(c.rows) * columns, 1e9f));
    SkinnyLinearArguments a;
    a.weight = weight.device();
    a.in = in.device();
    if (c.norm) a.norm = norm.device();
    if (c.bias) a.bias = bias.device();
    a.epsilon = 1e-5f;
    a.out = c.is_float ? static_cast<void*>(floats.device()) : out.device();
    a.is_float = c.is_float;
    a.add = c.add;
    a.is_gated = c.gated;
    a.rows = c.rows;
    a.out_features = c.out;
    a.in_features = c.in;
    ASSERT_TRUE(IsSkinny(a));
    Check(LaunchSkinnyLinear(a, multiprocessors_, nullptr));
    Finish();

    std::vector<double> wanted;
    for (int row = 0; row < c.rows; ++row) {
      double squares = 0;
      for (int k = 0; k < c.in; ++k) squares += std::pow(Value(in.host[size_t(row) * c.in + k]), 2);
      // Rounded as the kernel does.
      std::vector<double> x(c.in);
      for (int k = 0; k < c.in; ++k) {
        x[k] = Value(in.host[size_t(row) * c.in + k]);
        if (!c.norm) continue;
        x[k] =
            Value(__float2bfloat16(static_cast<float>(x[k] * Value(norm.host[k])))) / std::sqrt(squares / c.in + 1e-5);
      }
      const auto dot = [&](int feature) {
        double sum = 0;
        for (int k = 0; k < c.in; ++k) sum += x[k] * Value(weight.host[size_t(feature) * c.in + k]);
        return sum;
      };
      for (int column = 0; column < columns; ++column) {
        double value = dot(column);
        if (c.gated) value = value / (1 + std::exp(-value)) * dot(columns + column);
        if (c.bias) value += Value(bias.host[column]);
        if (c.add) value += Value(out.host[size_t(row) * columns + column]);
        wanted.push_back(value);
      }
    }
    if (c.is_float) {
      ExpectNear(floats.Read(), wanted, 1e-4, "floats");
    } else {
      ExpectNear(out.Read(), wanted, 0.01, "out");
    }
  }
}

// A pool, sequences in it and what attention over them gives.
struct AttentionCase {
  HeadShape shape;
  int page_tokens;
  std::vector<std::pair<int, int>> sequences;  // Rows and tokens of context.
};

class AttentionRig {
 public:
  AttentionRig(const AttentionCase& c, std::mt19937& random) : c_(c) {
    int pages = 0;
    for (const auto& [rows, context] : c.sequences) {
      sequences_.push_back({num_rows_, rows, context, pages});
      for (int i = 0; i < rows; ++i) {
        positions_.push_back(context - rows + i);
        sequence_of_row_.push_back(static_cast<int>(sequences_.size()) - 1);
      }
      num_rows_ += rows;
      max_rows_ = std::max(max_rows_, rows);
      pages += (context + c.page_tokens - 1) / c.page_tokens;
    }
    page_table_.resize(pages);
    std::iota(page_table_.begin(), page_table_.end(), 3);
    std::shuffle(page_table_.begin(), page_table_.end(), random);
    layer_elements_ = int64_t{2} * c.shape.num_kv_heads * c.page_tokens * c.shape.head_dim;
    page_elements_ = 2 * layer_elements_;  // Two layers; this is the second.
    pool_elements_ = page_elements_ * (pages + 5);
  }
  int columns() const { return (c_.shape.num_heads + 2 * c_.shape.num_kv_heads) * c_.shape.head_dim; }
  int num_rows() const { return num_rows_; }
  int max_rows() const { return max_rows_; }
  int64_t pool_elements() const { return pool_elements_; }
  const std::vector<SequenceView>& sequences() const { return sequences_; }
  std::vector<int32_t>& page_table() { return page_table_; }
  std::vector<int32_t>& positions() { return positions_; }
  std::vector<int32_t>& sequence_of_row() { return sequence_of_row_; }
  LayerPages Pages(Bf16* pool) const {
    LayerPages pages;
    pages.base = reinterpret_cast<uint8_t*>(pool + layer_elements_);
    pages.page_bytes = page_elements_ * 2;
    pages.head_bytes = int64_t{c_.page_tokens} * c_.shape.head_dim * 2;
    pages.value_offset = c_.shape.num_kv_heads * pages.head_bytes;
    pages.page_tokens = c_.page_tokens;
    return pages;
  }
  // Index in the pool of a token's first element.
  int64_t Slot(int sequence, int token, int plane, int head) const {
    const int page = page_table_[sequences_[sequence].first_page + token / c_.page_tokens];
    return page * page_elements_ + layer_elements_ +
           ((int64_t{plane} * c_.shape.num_kv_heads + head) * c_.page_tokens + token % c_.page_tokens) *
               c_.shape.head_dim;
  }
  // Attention of `queries` [row][head][dim] over a pool.
  std::vector<double> Attend(const std::vector<Bf16>& qkv, const std::vector<Bf16>& pool) const {
    const int dim = c_.shape.head_dim, group = c_.shape.num_heads / c_.shape.num_kv_heads;
    std::vector<double> out;
    for (int row = 0; row < num_rows_; ++row) {
      const int sequence = sequence_of_row_[row], seen = positions_[row] + 1;
      for (int head = 0; head < c_.shape.num_heads; ++head) {
        std::vector<double> weights(seen);
        double top = -1e300, sum = 0;
        for (int token = 0; token < seen; ++token) {
          const int64_t slot = Slot(sequence, token, 0, head / group);
          double score = 0;
          for (int d = 0; d < dim; ++d) {
            score += Value(qkv[size_t(row) * columns() + head * dim + d]) * Value(pool[slot + d]);
          }
          weights[token] = score / std::sqrt(dim);
          top = std::max(top, weights[token]);
        }
        for (double& weight : weights) sum += weight = std::exp(weight - top);
        std::vector<double> values(dim);
        for (int token = 0; token < seen; ++token) {
          const int64_t slot = Slot(sequence, token, 1, head / group);
          for (int d = 0; d < dim; ++d) values[d] += weights[token] / sum * Value(pool[slot + d]);
        }
        out.insert(out.end(), values.begin(), values.end());
      }
    }
    return out;
  }

 private:
  const AttentionCase c_;
  std::vector<SequenceView> sequences_;
  std::vector<int32_t> page_table_, positions_, sequence_of_row_;
  int num_rows_ = 0, max_rows_ = 1;
  int64_t layer_elements_ = 0, page_elements_ = 0, pool_elements_ = 0;
};

std::vector<AttentionCase> AttentionCases(bool single_rows) {
  std::vector<AttentionCase> cases;
  for (const HeadShape& shape : {HeadShape{4, 2, 32}, {9, 3, 64}, {8, 2, 128}, {8, 1, 64}, {16, 1, 128}, {6, 6, 128}}) {
    for (int page_tokens : {1, 5, 16, 64}) {
      if (single_rows) {
        cases.push_back({shape, page_tokens, {{1, 1}}});
        cases.push_back({shape, page_tokens, {{1, 700}}});
        cases.push_back({shape, page_tokens, {{1, 17}, {1, 16}, {1, 333}, {1, 2}, {1, 64}}});
      } else {
        cases.push_back({shape, page_tokens, {{40, 40}}});
        cases.push_back({shape, page_tokens, {{1, 90}, {33, 100}, {130, 260}}});
      }
    }
  }
  return cases;
}

TEST_F(CudaKernelsTest, PagedAttentionAppendsAndAttends) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/true)) {
    for (const auto& [splits, adjacent] : {std::pair{1, false}, {4, true}, {32, false}}) {
      SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                      << c.shape.head_dim << ", pages of " << c.page_tokens << ", "
                                      << c.sequences.size() << " sequences, splits " << splits);
      AttentionRig rig(c, random_);
      const int dim = c.shape.head_dim, half = dim / 2;
      Both<Bf16> pool(Random(rig.pool_elements())), qkv(Random(size_t(rig.num_rows()) * rig.columns())),
          q_norm(Random(dim)), k_norm(Random(dim));
      Both<Bf16> out(Random(size_t(rig.num_rows()) * c.shape.num_heads * dim));
      std::vector<float2> turns;
      for (int position : rig.positions()) {
        for (int i = 0; i < half; ++i) {
          const double angle = position * std::pow(10000.0, -2.0 * i / dim);
          turns.push_back({float(std::cos(angle)), float(std::sin(angle))});
        }
      }
      Both<float2> device_turns(turns);
      Both<SequenceView> sequences(rig.sequences());
      Both<int32_t> pages(rig.page_table());
      const int count = static_cast<int>(rig.sequences().size());
      Both<float> partial(std::vector<float>(PartialFloats(c.shape, count, splits)));
      Both<uint32_t> arrived(std::vector<uint32_t>(NumArrived(c.shape, count)));
      PagedAttentionArguments a;
      a.step.sequences = sequences.device();
      a.step.pages = pages.device();
      a.step.rows = rig.num_rows();
      a.step.num_sequences = count;
      a.shape = c.shape;
      a.pages = rig.Pages(pool.device());
      a.qkv = qkv.device();
      a.rotation.q_norm = q_norm.device();
      a.rotation.k_norm = k_norm.device();
      a.rotation.epsilon = 1e-6f;
      a.rotation.turns = device_turns.device();
      a.rotation.adjacent_pairs = adjacent;
      a.appends = true;
      a.splits = splits;
      a.partial = partial.device();
      a.arrived = arrived.device();
      a.out = out.device();
      for (int repeat = 0; repeat < 2; ++repeat) {
        Check(LaunchPagedAttention(a, nullptr));
        Finish();
      }

      // The same on the host.
      std::vector<Bf16> rotated = qkv.host;
      std::vector<Bf16> wanted_pool = pool.host;
      for (int row = 0; row < rig.num_rows(); ++row) {
        const auto rotate = [&](int head, const std::vector<Bf16>& norm) {
          Bf16* x = rotated.data() + size_t(row) * rig.columns() + head * dim;
          double squares = 0;
          for (int i = 0; i < dim; ++i) squares += Value(x[i]) * Value(x[i]);
          for (int i = 0; i < half; ++i) {
            const int first = adjacent ? 2 * i : i, second = adjacent ? 2 * i + 1 : i + half;
            const double scale = 1 / std::sqrt(squares / dim + 1e-6);
            const double u = Value(x[first]) * scale * Value(norm[first]),
                         v = Value(x[second]) * scale * Value(norm[second]);
            const float2 turn = turns[size_t(row) * half + i];
            // Squares are those before this pair changes.
            x[first] = __float2bfloat16(float(u * turn.x - v * turn.y));
            x[second] = __float2bfloat16(float(u * turn.y + v * turn.x));
          }
        };
        for (int head = 0; head < c.shape.num_heads; ++head) rotate(head, q_norm.host);
        for (int head = 0; head < c.shape.num_kv_heads; ++head) {
          const int key_head = c.shape.num_heads + head, value_head = key_head + c.shape.num_kv_heads;
          rotate(key_head, k_norm.host);
          const Bf16* row_begin = rotated.data() + size_t(row) * rig.columns();
          std::copy_n(row_begin + key_head * dim, dim,
                      wanted_pool.begin() + rig.Slot(row, rig.positions()[row], 0, head));
          std::copy_n(row_begin + value_head * dim, dim,
                      wanted_pool.begin() + rig.Slot(row, rig.positions()[row], 1, head));
        }
      }
      ExpectNear(out.Read(), rig.Attend(rotated, wanted_pool), 0.02, "out");
      std::vector<double> all;
      for (Bf16 value : wanted_pool) all.push_back(Value(value));
      ExpectNear(pool.Read(), all, 0.01, "pool");
      if (HasFailure()) return;
    }
  }
}

TEST_F(CudaKernelsTest, AttentionOfChunksIsThatOfTheHost) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/false)) {
    SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                    << c.shape.head_dim << ", pages of " << c.page_tokens << ", " << c.sequences.size()
                                    << " sequences");
    AttentionRig rig(c, random_);
    const int dim = c.shape.head_dim;
    Both<Bf16> pool(Random(rig.pool_elements())), qkv(Random(size_t(rig.num_rows()) * rig.columns()));
    Both<Bf16> out(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
    Both<SequenceView> sequences(rig.sequences());
    Both<int32_t> pages(rig.page_table());
    PagedAttentionArguments a;
    a.step.sequences = sequences.device();
    a.step.pages = pages.device();
    a.step.rows = rig.num_rows();
    a.step.num_sequences = static_cast<int>(rig.sequences().size());
    a.shape = c.shape;
    a.pages = rig.Pages(pool.device());
    a.qkv = qkv.device();
    a.max_rows = rig.max_rows();
    a.out = out.device();
    Check(LaunchPagedAttention(a, nullptr));
    Finish();
    const std::vector<double> wanted = rig.Attend(qkv.host, pool.host);
    ExpectNear(out.Read(), wanted, 0.02, "by the kernel for single rows");
    if (!HasPrefillAttention(c.shape, compute_major_)) continue;

    // Chunks by FlashInfer's kernel, single rows by ours.
    Both<Bf16> other(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
    std::vector<int32_t> first_rows, first_pages, contexts;
    for (const SequenceView& sequence : rig.sequences()) {
      if (sequence.num_rows == 1) continue;
      first_rows.push_back(sequence.first_row);
      first_pages.push_back(sequence.first_page);
      contexts.push_back(sequence.context_tokens);
    }
    first_rows.push_back(rig.num_rows());
    first_pages.push_back(static_cast<int>(rig.page_table().size()));
    void *workspace, *host;
    Check(cudaMalloc(&workspace, kPrefillWorkspaceBytes));
    Check(cudaMallocHost(&host, kPrefillWorkspaceBytes));
    PrefillPlan plan;
    Check(MakePrefillPlan(c.shape, first_rows.data(), first_pages.data(), contexts.data(),
                          static_cast<int>(contexts.size()), workspace, host, nullptr, &plan));
    PrefillAttentionArguments p;
    p.shape = c.shape;
    p.pages = a.pages;
    p.page_table = pages.device();
    p.qkv = qkv.device();
    p.rows = rig.num_rows();
    p.out = other.device();
    Check(LaunchPrefillAttention(p, plan, nullptr));
    a.out = other.device();
    a.single_rows_only = true;
    a.max_rows = 1;
    Check(LaunchPagedAttention(a, nullptr));
    Finish();
    ExpectNear(other.Read(), wanted, 0.02, "by the kernel for chunks");
    cudaFree(workspace);
    cudaFreeHost(host);
    if (HasFailure()) return;
  }
}

TEST_F(CudaKernelsTest, SamplingFiltersAndDrawsAsTheSettingsSay) {
  const int columns = 1000, rows = 6;
  std::vector<float> logits(size_t(columns) * rows);
  std::normal_distribution<float> normal(0, 2);
  for (float& value : logits) value = normal(random_);
  logits[3 * columns + 17] = NAN;
  Both<float> device_logits(logits);
  Both<int32_t> tokens(std::vector<int32_t>(rows, -7)), results(std::vector<int32_t>(rows, -7));
  std::vector<std::vector<int>> counts(rows, std::vector<int>(columns));
  const int draws = 4000;
  for (int draw = 0; draw < draws; ++draw) {
    std::vector<SampleSettings> settings(rows);
    settings[1] = {.temperature = 1.3f, .top_k = 20};
    settings[2] = {.temperature = 0.8f, .top_p = 0.7f};
    settings[3] = {.temperature = 1};
    settings[4] = {.temperature = 1.1f, .min_p = 0.2f};
    settings[5] = {.temperature = 1.0f, .top_p = 0.9f, .top_k = 30};
    for (SampleSettings& s : settings) s.seed = 99, s.index = draw;
    Both<SampleSettings> device_settings(settings);
    Check(LaunchSample(device_logits.device(), rows, columns, device_settings.device(), tokens.device(),
                       results.device(), nullptr));
    Finish();
    const std::vector<int32_t> got = results.Read();
    EXPECT_EQ(got[3], -1);
    for (int row = 0; row < rows; ++row) {
      if (row != 3) ++counts[row][got[row]];
    }
  }
  // Frequencies against the probabilities of the filtered distribution.
  for (int row : {0, 1, 2, 4, 5}) {
    std::vector<int> order(columns);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + size_t(row) * columns;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
    const double temperature = row == 1 ? 1.3 : row == 2 ? 0.8 : row == 4 ? 1.1 : 1.0;
    size_t keep = row == 0 ? 1 : row == 1 ? 20 : row == 5 ? 30 : columns;
    std::vector<double> weights;
    for (size_t i = 0; i < keep; ++i) weights.push_back(std::exp((values[order[i]] - values[order[0]]) / temperature));
    const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double top_p = row == 2 ? 0.7 : row == 5 ? 0.9 : 2;
    double kept = 0;
    size_t count = 0;
    while (count < weights.size() && (row != 4 || weights[count] >= 0.2)) {
      kept += weights[count++];
      if (kept >= top_p * all) break;
    }
    int inside = 0;
    double distance = 0;
    for (size_t i = 0; i < count; ++i) {
      inside += counts[row][order[i]];
      distance += std::abs(counts[row][order[i]] / double(draws) - weights[i] / kept) / 2;
    }
    EXPECT_EQ(inside, draws) << "row " << row;
    EXPECT_LT(distance, 0.08) << "row " << row << ", " << count << " candidates";
  }
}

TEST_F(CudaKernelsTest, ExpertsAreThoseOfTheHost) {
  const int rows = 5, hidden = 96, width = 40, experts = 12, chosen = 3;
  Both<Bf16> in(Random(rows * hidden)), out(Random(rows * hidden));
  std::vector<std::unique_ptr<Both<Bf16>>> gate_up, down;
  std::vector<const Bf16*> gate_up_pointers, down_pointers;
  for (int e = 0; e < experts; ++e) {
    gate_up.push_back(std::make_unique<Both<Bf16>>(Random(2 * width * hidden, 0.1f)));
    down.push_back(std::make_unique<Both<Bf16>>(Random(hidden * width, 0.1f)));
    gate_up_pointers.push_back(gate_up.back()->device());
    down_pointers.push_back(down.back()->device());
  }
  std::vector<float> logits;
  std::normal_distribution<float> normal(0, 1);
  for (int i = 0; i < rows * experts; ++i) logits.push_back(normal(random_));
  Both<float> router(logits), weights(std::vector<float>(rows * chosen));
  Both<const Bf16*> gate_up_table(gate_up_pointers), down_table(down_pointers);
  Both<int32_t> choices(std::vector<int32_t>(rows * chosen));
  Both<Bf16> activated(std::vector<Bf16>(rows * chosen * width));
  MoeArguments a;
  a.in = in.device();
  a.router_logits = router.device();
  a.gate_up = gate_up_table.device();
  a.down = down_table.device();
  a.rows = rows, a.hidden = hidden, a.width = width, a.num_experts = experts, a.experts_per_token = chosen;
  a.normalise_top_k = true;
  a.chosen = choices.device();
  a.weights = weights.device();
  a.activated = activated.device();
  a.out = out.device();
  Check(LaunchMoe(a, nullptr));
  Finish();
  std::vector<double> wanted;
  for (int row = 0; row < rows; ++row) {
    std::vector<int> order(experts);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + row * experts;
    std::sort(order.begin(), order.end(), [&](int x, int y) { return values[x] > values[y]; });
    double sum = 0;
    for (int k = 0; k < chosen; ++k) sum += std::exp(values[order[k]]);
    std::vector<double> total(hidden);
    for (int c = 0; c < hidden; ++c) total[c] = Value(out.host[row * hidden + c]);
    for (int k = 0; k < chosen; ++k) {
      const int e = order[k];
      std::vector<double> h(width);
      for (int i = 0; i < width; ++i) {
        double gate = 0, up = 0;
        for (int c = 0; c < hidden; ++c) {
          gate += Value(gate_up[e]->host[i * hidden + c]) * Value(in.host[row * hidden + c]);
          up += Value(gate_up[e]->host[(width + i) * hidden + c]) * Value(in.host[row * hidden + c]);
        }
        h[i] = Value(__float2bfloat16(float(gate / (1 + std::exp(-gate)) * up)));
      }
      for (int c = 0; c < hidden; ++c) {
        double dot = 0;
        for (int i = 0; i < width; ++i) dot += h[i] * Value(down[e]->host[c * width + i]);
        total[c] += std::exp(values[e]) / sum * dot;
      }
    }
    wanted.insert(wanted.end(), total.begin(), total.end());
  }
  ExpectNear(out.Read(), wanted, 0.01, "out");
}

}  // namespace
}  // namespace tandem
