#include "engine/cuda/attention_parts.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace tandem {
namespace {

std::vector<SequenceView> Sequences(const std::vector<int>& contexts) {
  std::vector<SequenceView> sequences;
  for (int context : contexts) {
    const int row = static_cast<int>(sequences.size());
    sequences.push_back({.first_row = row, .num_rows = 1, .context_tokens = context});
  }
  return sequences;
}

std::vector<AttentionPart> Split(const AttentionSplitter& splitter, const std::vector<SequenceView>& sequences) {
  std::vector<AttentionPart> parts(splitter.NumParts(static_cast<int>(sequences.size())));
  splitter.Split(sequences, parts.data());
  return parts;
}

// Splits by row of the sequence; checks that they are whole and follow one another.
std::map<int, int> SplitsOf(const std::vector<AttentionPart>& parts) {
  std::map<int, int> splits;
  for (size_t i = 0; i < parts.size(); ++i) {
    const AttentionPart& part = parts[i];
    if (part.sequence.context_tokens == 0) continue;
    EXPECT_EQ(part.split, splits[part.sequence.first_row]++);
    EXPECT_LE(part.splits, AttentionSplitter::kMaxSplits);
    if (part.split > 0) {
      EXPECT_EQ(parts[i - 1].sequence.first_row, part.sequence.first_row);
      EXPECT_EQ(parts[i - 1].splits, part.splits);
    }
    if (part.split + 1 == part.splits) {
      EXPECT_EQ(splits[part.sequence.first_row], part.splits);
    }
  }
  return splits;
}

// The most tokens that a part of a context has.
int LongestPart(const std::vector<AttentionPart>& parts) {
  int longest = 0;
  for (const AttentionPart& part : parts) {
    longest = std::max(longest, (part.sequence.context_tokens + part.splits - 1) / part.splits);
  }
  return longest;
}

const AttentionSplitter kH100(132, /*blocks_of_part=*/8);

TEST(AttentionPartsTest, FewSequencesFillTheDevice) {
  EXPECT_EQ(SplitsOf(Split(kH100, Sequences({4096})))[0], 16);  // 128 blocks.
  EXPECT_EQ(SplitsOf(Split(kH100, Sequences({4096, 4096})))[1], 8);
}

TEST(AttentionPartsTest, EqualOrAlmostEqualSequencesAreNotCutWhereTheyFillTheDevice) {
  for (int count : {17, 32, 128}) {
    std::vector<int> contexts(count, 2000);
    for (int i = 0; i < count; ++i) contexts[i] += i % 100;
    for (const auto& [row, splits] : SplitsOf(Split(kH100, Sequences(contexts)))) EXPECT_EQ(splits, 1) << count;
  }
}

TEST(AttentionPartsTest, ALongContextAmongShortOnesIsCut) {
  std::vector<int> contexts(13, 10'000);
  contexts[5] = 120'000;
  const std::vector<AttentionPart> parts = Split(kH100, Sequences(contexts));
  EXPECT_EQ(SplitsOf(parts).size(), 13);
  EXPECT_LE(LongestPart(parts), 2 * 240'000 / 13);
  EXPECT_EQ(parts[0].sequence.first_row, 5);  // The longest parts begin first.
}

TEST(AttentionPartsTest, ShortContextsAreNotCutIntoCrumbs) {
  EXPECT_EQ(SplitsOf(Split(kH100, Sequences({20})))[0], 1);
  EXPECT_EQ(SplitsOf(Split(kH100, Sequences({130})))[0], 3);
}

TEST(AttentionPartsTest, ChunksAndPaddingAreLeftOut) {
  std::vector<SequenceView> sequences = Sequences({500, 0, 700});
  sequences[2].num_rows = 40;
  EXPECT_EQ(SplitsOf(Split(kH100, sequences)).size(), 1);
  std::vector<AttentionPart> parts(kH100.NumParts(3));
  kH100.KeepWhole(sequences, parts.data());
  EXPECT_EQ(SplitsOf(parts).size(), 2);
  EXPECT_EQ(SplitsOf(Split(kH100, Sequences({0, 0}))).size(), 0);
}

TEST(AttentionPartsTest, AnyContextsFitAndAreBalanced) {
  std::mt19937 random(7);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const int count = 1 + static_cast<int>(random() % 200);
    std::vector<int> contexts(count);
    for (int& context : contexts) context = 1 + static_cast<int>(random() % (1u << (1 + random() % 17)));
    const std::vector<AttentionPart> parts = Split(kH100, Sequences(contexts));
    ASSERT_EQ(SplitsOf(parts).size(), count);
    const int64_t total = std::accumulate(contexts.begin(), contexts.end(), int64_t{0});
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    // Each sequence needs a part; what a cut leaves over is spread over the others.
    const int64_t spread = count == 1 ? total / 16 : total * 9 / 8 / (static_cast<int64_t>(parts.size()) - count);
    EXPECT_LE(LongestPart(parts), std::max<int64_t>({spread + 1, 64, longest / AttentionSplitter::kMaxSplits + 1}));
  }
}

}  // namespace
}  // namespace tandem
