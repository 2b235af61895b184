#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace tandem {

// One sequence's part of a step, for kernels.
struct SequenceView {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t context_tokens = 0;  // 0: padding, which has no pages.
  int32_t first_page = 0;      // Index into StepView::pages.
};

// What one block of the attention kernel does for a KV head: the split'th of `splits` even parts of a sequence's
// context. The parts of a sequence follow one another.
struct AttentionPart {
  SequenceView sequence;  // Without context: nothing is to be done.
  int32_t split = 0, splits = 1;
};

// Cuts the contexts of a step's sequences into parts of about the same length, so that a device is filled by few
// sequences, and one long context among short ones does not hold all up.
//
// Thread-safety: immutable.
class AttentionSplitter {
 public:
  // `blocks_of_part`: that a part has, one for each KV head and 8 query heads of it.
  AttentionSplitter(int multiprocessors, int blocks_of_part)
      : multiprocessors_(multiprocessors), blocks_of_part_(blocks_of_part) {}

  // Parts of a step with so many sequences; of their number only, as it is part of what is recorded.
  int NumParts(int num_sequences) const;
  // The most that any step of up to so many sequences has.
  int MostParts(int num_sequences) const;
  // Writes NumParts(sequences.size()) parts, of the sequences with one row; longest parts first.
  void Split(absl::Span<const SequenceView> sequences, AttentionPart* parts) const;
  // As Split, but each sequence, of any number of rows, is one part.
  void KeepWhole(absl::Span<const SequenceView> sequences, AttentionPart* parts) const;

  static constexpr int kMaxSplits = 32;  // Of one sequence: what a warp puts together.

 private:
  // Parts that as many equal sequences have.
  int EvenParts(int num_sequences) const;
  const int multiprocessors_, blocks_of_part_;
};

}  // namespace tandem
