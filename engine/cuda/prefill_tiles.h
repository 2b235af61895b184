#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/cuda/attention_parts.h"

namespace tandem {

// Rows of a chunk that a block of prefill_attention takes at a time, for each KV head.
struct PrefillTile {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_position = 0;  // Of the first row, in its sequence.
  int32_t context_tokens = 0;  // Of the sequence.
  int32_t first_page = 0;      // As SequenceView's.
};

// The chunks, cut into tiles of up to `tile_rows`; those that see most come first, so that the last ones to be taken
// are short.
std::vector<PrefillTile> CutIntoTiles(absl::Span<const SequenceView> chunks, int tile_rows);

}  // namespace tandem
