#include "engine/cuda/attention_parts.h"

#include <algorithm>
#include <vector>

namespace tandem {
namespace {

constexpr int64_t kLeastTokens = 64;  // Of a part: a tile for each warp.

struct PartCut {
  const SequenceView* sequence;
  int splits;
  int64_t tokens_of_part() const { return (sequence->context_tokens + splits - 1) / splits; }
};

}  // namespace

int AttentionSplitter::EvenParts(int num_sequences) const {
  const int blocks = num_sequences * blocks_of_part_;
  return num_sequences * std::clamp(multiprocessors_ / std::max(1, blocks), 1, kMaxSplits);
}

int AttentionSplitter::NumParts(int num_sequences) const {
  if (num_sequences <= 1) return EvenParts(num_sequences);
  // A few more, for unequal ones.
  return EvenParts(num_sequences) + (num_sequences <= 32 ? num_sequences / 2 : std::max(16, num_sequences / 4));
}

int AttentionSplitter::MostParts(int num_sequences) const {
  int most = 0;
  for (int count = 1; count <= num_sequences; ++count) most = std::max(most, NumParts(count));
  return most;
}

void AttentionSplitter::Split(absl::Span<const SequenceView> sequences, AttentionPart* parts) const {
  const int num_sequences = static_cast<int>(sequences.size()), num_parts = NumParts(num_sequences);
  std::vector<PartCut> cuts;
  int64_t total = 0;
  for (const SequenceView& sequence : sequences) {
    if (sequence.num_rows != 1 || sequence.context_tokens == 0) continue;
    cuts.push_back({&sequence, 1});
    total += sequence.context_tokens;
  }
  // Sequences that are about equal are not to be cut for being a little over the mean.
  const int64_t slack = num_sequences == 1 ? 0 : total / 10;
  int64_t tokens = std::max(kLeastTokens, (total + slack) / std::max(1, EvenParts(num_sequences)));
  for (int64_t count = num_parts + 1; count > num_parts; tokens += tokens / 8) {
    count = 0;
    for (PartCut& cut : cuts) {
      cut.splits =
          static_cast<int>(std::min<int64_t>(kMaxSplits, (cut.sequence->context_tokens + tokens - 1) / tokens));
      count += cut.splits;
    }
  }
  std::stable_sort(cuts.begin(), cuts.end(),
                   [](const PartCut& a, const PartCut& b) { return a.tokens_of_part() > b.tokens_of_part(); });
  int at = 0;
  for (const PartCut& cut : cuts) {
    for (int split = 0; split < cut.splits; ++split) parts[at++] = {*cut.sequence, split, cut.splits};
  }
  std::fill(parts + at, parts + num_parts, AttentionPart());
}

void AttentionSplitter::KeepWhole(absl::Span<const SequenceView> sequences, AttentionPart* parts) const {
  const int num_parts = NumParts(static_cast<int>(sequences.size()));
  for (size_t i = 0; i < sequences.size(); ++i) parts[i] = {sequences[i], 0, 1};
  std::fill(parts + sequences.size(), parts + num_parts, AttentionPart());
}

}  // namespace tandem
