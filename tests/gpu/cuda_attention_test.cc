// Attention of engine/cuda against sums in double precision on the host, on random data.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "engine/cuda/chunk_attention.h"
#include "engine/cuda/paged_attention.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/streamed_attention.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using CudaAttentionTest = CudaKernelsTest;

// A pool, sequences in it and what attention over them gives.
struct AttentionCase {
  HeadShape shape;
  int page_tokens;
  std::vector<std::pair<int, int>> sequences;  // Rows and tokens of context.
  bool is_float8 = false;                      // The pool.
};

std::vector<uint8_t> Float8Codes(const std::vector<Bf16>& values) {
  std::vector<uint8_t> codes;
  for (Bf16 value : values) codes.push_back(__nv_cvt_float_to_fp8(float(Value(value)), __NV_SATFINITE, __NV_E4M3));
  return codes;
}
// All are values of bf16, too.
std::vector<Bf16> Float8Values(const std::vector<uint8_t>& codes) {
  std::vector<Bf16> values;
  for (uint8_t code : codes) {
    values.push_back(__float2bfloat16(__half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)))));
  }
  return values;
}

// The memory of a pool, and what it stands for.
class TestPool {
 public:
  TestPool(std::vector<Bf16> values, bool is_float8)
      : values_(is_float8 ? Float8Values(Float8Codes(values)) : std::move(values)),
        is_float8_(is_float8),
        wide_(values_),
        codes_(Float8Codes(values_)) {}
  const std::vector<Bf16>& values() const { return values_; }
  uint8_t* device() { return is_float8_ ? codes_.device() : reinterpret_cast<uint8_t*>(wide_.device()); }
  std::vector<Bf16> Read() { return is_float8_ ? Float8Values(codes_.Read()) : wide_.Read(); }

 private:
  const std::vector<Bf16> values_;
  const bool is_float8_;
  Both<Bf16> wide_;
  Both<uint8_t> codes_;
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
  // As for a device of so many multiprocessors.
  std::vector<AttentionPart> Parts(int multiprocessors, bool keeps_whole) const {
    const AttentionSplitter splitter(multiprocessors, BlocksOfPart(c_.shape));
    std::vector<AttentionPart> parts(splitter.NumParts(static_cast<int>(sequences_.size())));
    keeps_whole ? splitter.KeepWhole(sequences_, parts.data()) : splitter.Split(sequences_, parts.data());
    return parts;
  }
  std::vector<int32_t>& page_table() { return page_table_; }
  std::vector<int32_t>& positions() { return positions_; }
  std::vector<int32_t>& sequence_of_row() { return sequence_of_row_; }
  KvLayout layout() const {
    return {.num_layers = 2,
            .num_kv_heads = c_.shape.num_kv_heads,
            .head_dim = c_.shape.head_dim,
            .element_bytes = c_.is_float8 ? 1 : 2,
            .page_tokens = c_.page_tokens};
  }
  ChunkAttention::Options ChunkOptions(int64_t pages, int multiprocessors, int compute_major) const {
    return {.shape = c_.shape,
            .layout = layout(),
            .max_pages_of_sequence = pages,
            .max_rows = num_rows_,
            .multiprocessors = multiprocessors,
            .compute_major = compute_major};
  }
  // The pool's values, but no numbers behind the contexts.
  std::vector<Bf16> Spoiled(std::vector<Bf16> values) const {
    for (int i = 0; i < static_cast<int>(sequences_.size()); ++i) {
      const int context = sequences_[i].context_tokens;
      const int end = (context + c_.page_tokens - 1) / c_.page_tokens * c_.page_tokens;
      for (int token = context; token < end; ++token) {
        for (int plane : {0, 1}) {
          for (int head = 0; head < c_.shape.num_kv_heads; ++head) {
            std::fill_n(values.begin() + Slot(i, token, plane, head), c_.shape.head_dim, __float2bfloat16(NAN));
          }
        }
      }
    }
    return values;
  }
  // Keys and values of the new tokens.
  std::vector<Bf16> SlotsOf(const std::vector<Bf16>& pool) const {
    std::vector<Bf16> slots;
    for (int row = 0; row < num_rows_; ++row) {
      for (int plane : {0, 1}) {
        for (int head = 0; head < c_.shape.num_kv_heads; ++head) {
          const auto slot = pool.begin() + Slot(sequence_of_row_[row], positions_[row], plane, head);
          slots.insert(slots.end(), slot, slot + c_.shape.head_dim);
        }
      }
    }
    return slots;
  }
  // Of each row, the cosine and sine of each pair's angle.
  std::vector<float2> Turns() const {
    std::vector<float2> turns;
    for (int position : positions_) {
      for (int i = 0; i < c_.shape.head_dim / 2; ++i) {
        const double angle = position * std::pow(10000.0, -2.0 * i / c_.shape.head_dim);
        turns.push_back({float(std::cos(angle)), float(std::sin(angle))});
      }
    }
    return turns;
  }
  // What RopeAndAppendKv makes of rows and pool; keys and values in the rows are left in any state.
  void RotateAndAppend(const std::vector<float2>& turns, const std::vector<Bf16>& q_norm,
                       const std::vector<Bf16>& k_norm, bool adjacent, std::vector<Bf16>& rows,
                       std::vector<Bf16>& pool) const {
    const int dim = c_.shape.head_dim, half = dim / 2;
    for (int row = 0; row < num_rows_; ++row) {
      const auto rotate = [&](int head, const std::vector<Bf16>& norm) {
        Bf16* x = rows.data() + size_t(row) * columns() + head * dim;
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
      for (int head = 0; head < c_.shape.num_heads; ++head) rotate(head, q_norm);
      for (int head = 0; head < c_.shape.num_kv_heads; ++head) {
        const int key_head = c_.shape.num_heads + head, value_head = key_head + c_.shape.num_kv_heads;
        rotate(key_head, k_norm);
        const Bf16* row_begin = rows.data() + size_t(row) * columns();
        for (const auto& [plane, from] : {std::pair{0, key_head}, {1, value_head}}) {
          std::copy_n(row_begin + from * dim, dim,
                      pool.begin() + Slot(sequence_of_row_[row], positions_[row], plane, head));
        }
      }
    }
  }
  LayerPages Pages(TestPool& pool) const {
    LayerPages pages;
    pages.base = pool.device() + layout().layer_bytes();
    pages.page_bytes = layout().page_bytes();
    pages.head_bytes = layout().head_bytes();
    pages.value_offset = c_.shape.num_kv_heads * pages.head_bytes;
    pages.page_tokens = c_.page_tokens;
    pages.is_float8 = c_.is_float8;
    return pages;
  }
  StepBatch Batch() const {
    StepBatch batch;
    batch.tokens.resize(num_rows_);
    for (const SequenceView& sequence : sequences_) {
      const size_t pages = (sequence.context_tokens + c_.page_tokens - 1) / c_.page_tokens;
      batch.sequences.push_back({sequence.first_row, sequence.num_rows, sequence.context_tokens,
                                 absl::MakeConstSpan(page_table_).subspan(sequence.first_page, pages)});
    }
    return batch;
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

std::vector<double> Values(const std::vector<Bf16>& values) {
  std::vector<double> all;
  for (Bf16 value : values) all.push_back(Value(value));
  return all;
}

// `wanted` becomes what the pool holds where that is in FP8.
void ExpectPool(bool is_float8, TestPool& pool, std::vector<Bf16>& wanted) {
  // The kernel rounds once: where bf16 lies between, a code may be the next one.
  const std::vector<double> all = Values(is_float8 ? Float8Values(Float8Codes(wanted)) : wanted);
  if (is_float8) wanted = pool.Read();
  ExpectNear(pool.Read(), all, is_float8 ? 0.13 : 0.01, "pool");
}

std::vector<AttentionCase> AttentionCases(bool single_rows) {
  std::vector<AttentionCase> cases;
  for (const HeadShape& shape : {HeadShape{4, 2, 32},
                                 {9, 3, 64},
                                 {8, 2, 128},
                                 {8, 1, 64},
                                 {16, 1, 128},
                                 {6, 6, 128},
                                 {32, 8, 128},
                                 {28, 4, 128},
                                 {24, 2, 64}}) {
    for (int page_tokens : {1, 5, 16, 64, 200}) {
      if (page_tokens == 200 && shape.head_dim != 128) continue;
      if (page_tokens != 16 && shape.num_heads > 16) continue;
      if (single_rows) {
        cases.push_back({shape, page_tokens, {{1, 1}}});
        cases.push_back({shape, page_tokens, {{1, 700}}});
        cases.push_back({shape, page_tokens, {{1, 17}, {1, 16}, {1, 333}, {1, 2}, {1, 64}}});
        cases.push_back({shape, page_tokens, {{1, 100}, {1, 4000}, {1, 90}}});
      } else {
        cases.push_back({shape, page_tokens, {{40, 40}}});
        cases.push_back({shape, page_tokens, {{1, 90}, {33, 100}, {130, 260}}});
        cases.push_back({shape, page_tokens, {{1, 2000}, {1, 30}, {33, 100}}});
        if (page_tokens == 16) cases.push_back({shape, page_tokens, {{300, 500}, {200, 200}}});
      }
    }
  }
  for (size_t i = 0, count = cases.size(); i < count; ++i) {
    if (cases[i].page_tokens != 16) continue;
    cases.push_back(cases[i]);
    cases.back().is_float8 = true;
  }
  return cases;
}

TEST_F(CudaAttentionTest, PagedAttentionAppendsAndAttends) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/true)) {
    for (const auto& [multiprocessors, adjacent] : {std::pair{1, false}, {60, true}, {2000, false}}) {
      SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                      << c.shape.head_dim << ", pages of " << c.page_tokens << ", "
                                      << c.sequences.size() << " sequences, " << multiprocessors << " multiprocessors"
                                      << (c.is_float8 ? ", FP8" : ""));
      AttentionRig rig(c, random_);
      const int dim = c.shape.head_dim;
      TestPool pool(Random(rig.pool_elements()), c.is_float8);
      Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns())), q_norm(Random(dim)), k_norm(Random(dim));
      Both<Bf16> out(Random(size_t(rig.num_rows()) * c.shape.num_heads * dim));
      const std::vector<float2> turns = rig.Turns();
      Both<float2> device_turns(turns);
      Both<AttentionPart> parts(rig.Parts(multiprocessors, /*keeps_whole=*/false));
      Both<int32_t> pages(rig.page_table());
      const int count = static_cast<int>(parts.host.size());
      Both<float> partial(std::vector<float>(PartialFloats(c.shape, count)));
      Both<uint32_t> arrived(std::vector<uint32_t>(NumArrived(c.shape, count)));
      PagedAttentionArguments a;
      a.step.parts = parts.device();
      a.step.num_parts = count;
      a.step.pages = pages.device();
      a.step.rows = rig.num_rows();
      a.shape = c.shape;
      a.pages = rig.Pages(pool);
      a.qkv = qkv.device();
      a.rotation.q_norm = q_norm.device();
      a.rotation.k_norm = k_norm.device();
      a.rotation.epsilon = 1e-6f;
      a.rotation.turns = device_turns.device();
      a.rotation.adjacent_pairs = adjacent;
      a.appends = true;
      a.partial = partial.device();
      a.arrived = arrived.device();
      a.out = out.device();
      for (int repeat = 0; repeat < 2; ++repeat) {
        Check(LaunchPagedAttention(a, nullptr));
        Finish();
      }
      std::vector<Bf16> rotated = qkv.host;
      std::vector<Bf16> wanted_pool = pool.values();
      rig.RotateAndAppend(turns, q_norm.host, k_norm.host, adjacent, rotated, wanted_pool);
      ExpectPool(c.is_float8, pool, wanted_pool);
      const std::vector<double> wanted = rig.Attend(rotated, wanted_pool);
      ExpectNear(out.Read(), wanted, 0.02, "out");

      Both<SequenceView> sequences(rig.sequences());
      a.step.sequences = sequences.device();
      a.step.num_sequences = static_cast<int>(sequences.host.size());
      if (!HasStreamedAttention(a, compute_major_)) continue;
      for (int blocks : {1, 7, multiprocessors_}) {
        TestPool other_pool(rig.Spoiled(pool.values()), c.is_float8);
        Both<Bf16> other(std::vector<Bf16>(out.host.size()));
        Both<float> streamed_partial(std::vector<float>(StreamedPartialFloats(c.shape, blocks)));
        Both<uint32_t> streamed_arrived(std::vector<uint32_t>(StreamedArrived(blocks)));
        a.pages = rig.Pages(other_pool);
        a.partial = streamed_partial.device();
        a.arrived = streamed_arrived.device();
        a.out = other.device();
        for (int repeat = 0; repeat < 2; ++repeat) {
          Check(LaunchStreamedAttention(a, blocks, nullptr));
          Finish();
        }
        ExpectNear(other.Read(), wanted, 0.02, "out of the streamed kernel");
        ExpectNear(rig.SlotsOf(other_pool.Read()), Values(rig.SlotsOf(wanted_pool)), 0.01, "slots of the streamed one");
      }
      if (HasFailure()) return;
    }
  }
}

TEST_F(CudaAttentionTest, RowsOfChunksAreRotatedAndAppended) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/false)) {
    for (bool adjacent : {false, true}) {
      SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                      << c.shape.head_dim << ", pages of " << c.page_tokens
                                      << (c.is_float8 ? ", FP8" : ""));
      AttentionRig rig(c, random_);
      TestPool pool(Random(rig.pool_elements()), c.is_float8);
      Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns()));
      Both<Bf16> q_norm(Random(c.shape.head_dim)), k_norm(Random(c.shape.head_dim));
      Both<float2> turns(rig.Turns());
      Both<int32_t> pages(rig.page_table()), positions(rig.positions()), sequence_of_row(rig.sequence_of_row());
      Both<SequenceView> sequences(rig.sequences());
      StepView step;
      step.positions = positions.device();
      step.sequence_of_row = sequence_of_row.device();
      step.sequences = sequences.device();
      step.pages = pages.device();
      step.rows = rig.num_rows();
      HeadRotation rotation;
      rotation.q_norm = q_norm.device();
      rotation.k_norm = k_norm.device();
      rotation.epsilon = 1e-6f;
      rotation.turns = turns.device();
      rotation.adjacent_pairs = adjacent;
      Check(LaunchRopeAndAppend(step, c.shape, rotation, rig.Pages(pool), qkv.device(), nullptr));
      Finish();
      std::vector<Bf16> rows = qkv.host, wanted_pool = pool.values();
      rig.RotateAndAppend(turns.host, q_norm.host, k_norm.host, adjacent, rows, wanted_pool);
      ExpectPool(c.is_float8, pool, wanted_pool);
      const std::vector<Bf16> got = qkv.Read();
      std::vector<Bf16> got_queries;
      std::vector<double> queries;
      const int query_columns = c.shape.num_heads * c.shape.head_dim;
      for (int row = 0; row < rig.num_rows(); ++row) {
        for (int column = 0; column < query_columns; ++column) {
          got_queries.push_back(got[size_t(row) * rig.columns() + column]);
          queries.push_back(Value(rows[size_t(row) * rig.columns() + column]));
        }
      }
      ExpectNear(got_queries, queries, 0.01, "queries");
      if (HasFailure()) return;
    }
  }
}

// What does not fit into the memory for widened pages is left to the kernel for single rows.
TEST_F(CudaAttentionTest, ChunksOfMorePagesOfFloat8ThanASequenceHasAreNotTaken) {
  const AttentionCase c = {{8, 2, 128}, 16, {{33, 100}, {130, 260}}, /*is_float8=*/true};
  AttentionRig rig(c, random_);
  for (const auto& [pages, takes] : {std::pair{24, true}, {23, false}}) {  // 7 and 17.
    const auto chunks = ChunkAttention::Create(rig.ChunkOptions(pages, multiprocessors_, compute_major_), nullptr);
    ASSERT_THAT(chunks, IsOk());
    if (*chunks == nullptr) GTEST_SKIP() << "there is no kernel for chunks here";
    EXPECT_EQ((*chunks)->Takes(rig.Batch()), takes);
  }
}

TEST_F(CudaAttentionTest, AttentionOfChunksIsThatOfTheHost) {
  for (const AttentionCase& c : AttentionCases(/*single_rows=*/false)) {
    SCOPED_TRACE(testing::Message() << "heads " << c.shape.num_heads << "/" << c.shape.num_kv_heads << " of "
                                    << c.shape.head_dim << ", pages of " << c.page_tokens << ", " << c.sequences.size()
                                    << " sequences" << (c.is_float8 ? ", FP8" : ""));
    AttentionRig rig(c, random_);
    const int dim = c.shape.head_dim;
    TestPool pool(rig.Spoiled(Random(rig.pool_elements())), c.is_float8);
    Both<Bf16> qkv(Random(size_t(rig.num_rows()) * rig.columns()));
    Both<Bf16> out(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
    Both<AttentionPart> whole(rig.Parts(132, /*keeps_whole=*/true)), single(rig.Parts(132, /*keeps_whole=*/false));
    Both<int32_t> pages(rig.page_table());
    const int num_parts = static_cast<int>(single.host.size());
    Both<float> partial(std::vector<float>(PartialFloats(c.shape, num_parts)));
    Both<uint32_t> arrived(std::vector<uint32_t>(NumArrived(c.shape, num_parts)));
    PagedAttentionArguments a;
    a.step.parts = whole.device();
    a.step.num_parts = num_parts;
    a.step.pages = pages.device();
    a.step.rows = rig.num_rows();
    a.partial = partial.device();
    a.arrived = arrived.device();
    a.shape = c.shape;
    a.pages = rig.Pages(pool);
    a.qkv = qkv.device();
    a.max_rows = rig.max_rows();
    a.out = out.device();
    Check(LaunchPagedAttention(a, nullptr));
    Finish();
    const std::vector<double> wanted = rig.Attend(qkv.host, pool.values());
    ExpectNear(out.Read(), wanted, 0.02, "by the kernel for single rows");

    // Chunks by the kernel for them, single rows by ours. Few blocks have several tiles each.
    const StepBatch batch = rig.Batch();
    a.step.parts = single.device();
    a.max_rows = 1;
    Both<SequenceView> sequences(rig.sequences());
    Both<float> streamed_partial(std::vector<float>(StreamedPartialFloats(c.shape, multiprocessors_)));
    Both<uint32_t> streamed_arrived(std::vector<uint32_t>(StreamedArrived(multiprocessors_)));
    PagedAttentionArguments streamed = a;
    streamed.step.sequences = sequences.device();
    streamed.step.num_sequences = static_cast<int>(sequences.host.size());
    streamed.partial = streamed_partial.device();
    streamed.arrived = streamed_arrived.device();
    for (int blocks : {multiprocessors_, 3}) {
      Both<Bf16> other(std::vector<Bf16>(size_t(rig.num_rows()) * c.shape.num_heads * dim));
      const int64_t all_pages = static_cast<int64_t>(rig.page_table().size());
      const auto chunks = ChunkAttention::Create(rig.ChunkOptions(all_pages, blocks, compute_major_), nullptr);
      ASSERT_THAT(chunks, IsOk());
      if (*chunks == nullptr) continue;
      ASSERT_TRUE((*chunks)->Takes(batch));
      ASSERT_TRUE((*chunks)->Plan(batch));
      for (int layer = 0; layer < rig.layout().num_layers; ++layer) {
        Check((*chunks)->Attend(layer, a.pages, pages.device(), qkv.device(), rig.num_rows(), other.device()));
      }
      a.out = streamed.out = other.device();
      if (blocks == 3 && HasStreamedAttention(streamed, compute_major_)) {
        Check(LaunchStreamedAttention(streamed, multiprocessors_, nullptr));
      } else {
        Check(LaunchPagedAttention(a, nullptr));
      }
      Finish();
      ExpectNear(other.Read(), wanted, 0.02, "by the kernel for chunks");
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tandem
