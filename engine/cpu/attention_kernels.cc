#include "engine/cpu/kernel_parts.h"
#include "engine/cpu/vector_math.h"

// Attention of a block of query rows over one KV head, in two passes: all scores, then softmax and
// the weighted sum of values. Tokens are taken in tiles of 16 by their position in the sequence, so
// neither the page size nor how a prompt was cut into chunks changes a result.

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {
namespace {

constexpr int kTile = 16;

// Where the tokens of one head lie.
struct HeadView {
  const AttentionTask& task;
  int plane;
  const uint8_t* Token(int position) const {
    const KvLayout& layout = task.kv.layout;
    int page = position / layout.page_tokens, slot = position % layout.page_tokens;
    return task.kv.base + layout.HeadOffset(task.pages[page], task.layer, plane, task.kv_head) +
           int64_t{slot} * layout.head_dim * layout.element_bytes;
  }
};

// 16 elements of the KV cache, which are FP8, f16 or f32 by their size.
TANDEM_INLINE Vec LoadKvVec(const uint8_t* from, int element_bytes) {
  if (element_bytes == 1) return LoadFloat8Vec(from);
  return element_bytes == 2 ? LoadHalfVec(from) : LoadVec(reinterpret_cast<const float*>(from));
}

TANDEM_INLINE float LoadKvElement(const uint8_t* from, int element_bytes) {
  if (element_bytes == 1) return Float8ToFloat(*from);
  if (element_bytes == 2) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    return HalfToFloat(half);
  }
  float value;
  std::memcpy(&value, from, 4);
  return value;
}

// One token's row as floats, padded with zeros to a multiple of 16.
TANDEM_INLINE void LoadToken(const uint8_t* from, int head_dim, int element_bytes, float* to) {
  int d = 0;
  for (; d + 16 <= head_dim; d += 16) StoreVec(to + d, LoadKvVec(from + d * element_bytes, element_bytes));
  if (d == head_dim) return;
  for (int i = d; i < (head_dim + 15) / 16 * 16; ++i) {
    to[i] = i < head_dim ? LoadKvElement(from + i * element_bytes, element_bytes) : 0;
  }
}

// Keys of up to 16 tokens, transposed: [head_dim][16 tokens]; missing tokens are zero.
void LoadKeyTile(const HeadView& keys, int first, int count, int padded_dim, float* row, float* tile) {
  const KvLayout& layout = keys.task.kv.layout;
  std::memset(tile, 0, sizeof(float) * kTile * padded_dim);
  for (int t = 0; t < count; ++t) {
    LoadToken(keys.Token(first + t), layout.head_dim, layout.element_bytes, row);
    for (int d = 0; d < layout.head_dim; ++d) tile[d * kTile + t] = row[d];
  }
}

// Scores of `kQueries` queries against a transposed tile, each read of which serves them all. Four sums a query hide
// the latency of the additions.
template <int kQueries>
TANDEM_INLINE void ScoreTile(const float* const* queries, const float* tile, int head_dim, float scale,
                             float* const* scores) {
  Vec sums[kQueries][4] = {};
  int d = 0;
  for (; d + 4 <= head_dim; d += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec keys = LoadVec(tile + (d + i) * kTile);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sums[q][i] = MultiplyAdd(Broadcast(queries[q][d + i]), keys, sums[q][i]);
    }
  }
  for (; d < head_dim; ++d) {
    for (int q = 0; q < kQueries; ++q) {
      sums[q][0] = MultiplyAdd(Broadcast(queries[q][d]), LoadVec(tile + d * kTile), sums[q][0]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; ++q) {
    StoreVec(scores[q], ((sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3])) * scale);
  }
}

// Turns `visible` scores into probabilities.
void Softmax(float* scores, int visible) {
  int padded = (visible + 15) / 16 * 16;
  for (int t = visible; t < padded; ++t) scores[t] = -1e30f;
  Vec top = LoadVec(scores);
  for (int t = 16; t < padded; t += 16) {
    Vec next = LoadVec(scores + t);
    top = next > top ? next : top;
  }
  Vec largest = Broadcast(Max(top)), sum = {};
  for (int t = 0; t < padded; t += 16) {
    Vec weight = Exp(LoadVec(scores + t) - largest);
    StoreVec(scores + t, weight);
    sum += weight;
  }
  // The padding's weights are e^-87: they vanish in the sum and are never multiplied with a value.
  Vec inverse = Broadcast(1.0f / Sum(sum));
  for (int t = 0; t < padded; t += 16) StoreVec(scores + t, LoadVec(scores + t) * inverse);
}

// out[dim] += sum over `count` tokens of weights[t] * values[t], for kBlocks * 16 of the dimensions.
template <int kBlocks>
TANDEM_INLINE void AddValueBlocks(const float* weights, const float* values, int count, int padded_dim, float* out) {
  Vec sums[kBlocks];
#pragma GCC unroll 4
  for (int i = 0; i < kBlocks; ++i) sums[i] = LoadVec(out + i * 16);
  for (int t = 0; t < count; ++t) {
    const Vec weight = Broadcast(weights[t]);
#pragma GCC unroll 4
    for (int i = 0; i < kBlocks; ++i) sums[i] = MultiplyAdd(weight, LoadVec(values + t * padded_dim + i * 16), sums[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kBlocks; ++i) StoreVec(out + i * 16, sums[i]);
}

void AddValues(const float* weights, const float* values, int count, int head_dim, int padded_dim, float* out) {
  int d = 0;
  for (; d + 64 <= head_dim; d += 64) AddValueBlocks<4>(weights, values + d, count, padded_dim, out + d);
  for (; d + 16 <= head_dim; d += 16) AddValueBlocks<1>(weights, values + d, count, padded_dim, out + d);
  for (; d < head_dim; ++d) {
    for (int t = 0; t < count; ++t) out[d] += weights[t] * values[t * padded_dim + d];
  }
}

}  // namespace

void Attention(const AttentionTask& task, float* scratch) {
  const KvLayout& layout = task.kv.layout;
  const int head_dim = layout.head_dim, padded_dim = (head_dim + 15) / 16 * 16;
  const int context = task.first_position + task.num_rows;
  const int64_t padded_context = (context + 15) / 16 * 16;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
  float* tile = scratch;  // [padded_dim][16] keys or [16][padded_dim] values.
  float* row_buffer = tile + kTile * padded_dim;
  float* scores = row_buffer + padded_dim;  // [num_rows][group_heads][padded_context]

  HeadView keys{task, 0}, values{task, layout.num_planes - 1};
  auto scores_of = [&](int row, int head) {
    return scores + (int64_t{row} * task.group_heads + head) * padded_context;
  };
  for (int first = 0; first < context; first += kTile) {
    int count = context - first < kTile ? context - first : kTile;
    LoadKeyTile(keys, first, count, padded_dim, row_buffer, tile);
    // Queries that see the tile: all heads of the rows from the tile's first token on.
    const int first_row = first > task.first_position ? first - task.first_position : 0;
    int64_t q = int64_t{first_row} * task.group_heads;
    const int64_t num_queries = int64_t{task.num_rows} * task.group_heads;
    auto score = [&]<int kQueries>() {
      const float* queries[kQueries];
      float* to[kQueries];
      for (int i = 0; i < kQueries; ++i) {
        const int row = static_cast<int>((q + i) / task.group_heads),
                  head = static_cast<int>((q + i) % task.group_heads);
        queries[i] = task.q + row * task.q_stride + head * head_dim;
        to[i] = scores_of(row, head) + first;
      }
      ScoreTile<kQueries>(queries, tile, head_dim, scale, to);
      q += kQueries;
    };
    while (q + 4 <= num_queries) score.template operator()<4>();
    while (q < num_queries) score.template operator()<1>();
  }
  for (int row = 0; row < task.num_rows; ++row) {
    for (int head = 0; head < task.group_heads; ++head) {
      Softmax(scores_of(row, head), task.first_position + row + 1);
      std::memset(task.out + row * task.out_stride + head * head_dim, 0, sizeof(float) * head_dim);
    }
  }
  for (int first = 0; first < context; first += kTile) {
    int count = context - first < kTile ? context - first : kTile;
    for (int t = 0; t < count; ++t) {
      LoadToken(values.Token(first + t), head_dim, layout.element_bytes, tile + t * padded_dim);
    }
    for (int row = 0; row < task.num_rows; ++row) {
      int visible = task.first_position + row + 1 - first;
      if (visible <= 0) continue;
      for (int head = 0; head < task.group_heads; ++head) {
        AddValues(scores_of(row, head) + first, tile, visible < count ? visible : count, head_dim, padded_dim,
                  task.out + row * task.out_stride + head * head_dim);
      }
    }
  }
}

void RmsNorm(const float* in, const float* weight, float epsilon, int64_t columns, float* out) {
  Vec squares = {};
  float tail = 0;
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) squares = MultiplyAdd(LoadVec(in + c), LoadVec(in + c), squares);
  for (; c < columns; ++c) tail += in[c] * in[c];
  float inverse = 1.0f / __builtin_sqrtf((Sum(squares) + tail) / static_cast<float>(columns) + epsilon);
  for (c = 0; c + 16 <= columns; c += 16) {
    StoreVec(out + c, LoadVec(in + c) * Broadcast(inverse) * LoadVec(weight + c));
  }
  for (; c < columns; ++c) out[c] = in[c] * inverse * weight[c];
}

void SiluMul(const float* gate, const float* up, int64_t columns, float* out) {
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) {
    Vec g = LoadVec(gate + c);
    StoreVec(out + c, g / (1.0f + Exp(-g)) * LoadVec(up + c));
  }
  for (; c < columns; ++c) out[c] = gate[c] / (1.0f + __builtin_expf(-gate[c])) * up[c];
}

void StoreKv(const float* in, int64_t count, int element_bytes, uint8_t* out) {
  if (element_bytes == 4) {
    std::memcpy(out, in, count * sizeof(float));
    return;
  }
  if (element_bytes == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = FloatToFloat8(in[i]);
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) StoreHalfVec(out + 2 * i, LoadVec(in + i));
  for (; i < count; ++i) {
    uint16_t half = FloatToHalf(in[i]);
    std::memcpy(out + 2 * i, &half, 2);
  }
}

}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
