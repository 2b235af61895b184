#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "engine/cuda/chunk_attention.h"
#include "engine/cuda/paged_attention.h"
#include "tests/gpu/device_values.h"

namespace tandem {

struct AttentionCase {
  HeadShape shape;
  int page_tokens;
  std::vector<std::pair<int, int>> sequences;  // Rows and tokens of context.
  bool is_float8 = false;                      // The pool.
};

inline std::vector<uint8_t> Float8Codes(const std::vector<Bf16>& values) {
  std::vector<uint8_t> codes;
  for (Bf16 value : values) codes.push_back(__nv_cvt_float_to_fp8(float(Value(value)), __NV_SATFINITE, __NV_E4M3));
  return codes;
}
// All are values of bf16, too.
inline std::vector<Bf16> Float8Values(const std::vector<uint8_t>& codes) {
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

// The sequences of a case, where they lie in a pool, and what kernels are to make of them, in double precision.
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

inline std::vector<double> Values(const std::vector<Bf16>& values) {
  std::vector<double> all;
  for (Bf16 value : values) all.push_back(Value(value));
  return all;
}

// `wanted` becomes what the pool holds where that is in FP8.
inline void ExpectPool(bool is_float8, TestPool& pool, std::vector<Bf16>& wanted) {
  // The kernel rounds once: where bf16 lies between, a code may be the next one.
  const std::vector<double> all = Values(is_float8 ? Float8Values(Float8Codes(wanted)) : wanted);
  if (is_float8) wanted = pool.Read();
  ExpectNear(pool.Read(), all, is_float8 ? 0.13 : 0.01, "pool");
}

}  // namespace tandem
