#include "engine/cuda/prefill_tiles.h"

#include <algorithm>

namespace tandem {

std::vector<PrefillTile> CutIntoTiles(absl::Span<const SequenceView> chunks, int tile_rows) {
  std::vector<PrefillTile> tiles;
  for (const SequenceView& chunk : chunks) {
    for (int32_t done = 0; done < chunk.num_rows; done += tile_rows) {
      tiles.push_back({.first_row = chunk.first_row + done,
                       .num_rows = std::min(tile_rows, chunk.num_rows - done),
                       .first_position = chunk.context_tokens - chunk.num_rows + done,
                       .context_tokens = chunk.context_tokens,
                       .first_page = chunk.first_page});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const PrefillTile& a, const PrefillTile& b) {
    return a.first_position + a.num_rows > b.first_position + b.num_rows;
  });
  return tiles;
}

}  // namespace tandem
