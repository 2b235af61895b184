#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/ids.h"
#include "common/kv_layout.h"

namespace tandem {

// One contiguous copy between two pools; offsets are in bytes from each pool's start.
struct CopyRun {
  int64_t source = 0;
  int64_t destination = 0;
  int64_t bytes = 0;
  bool operator==(const CopyRun&) const = default;
};

// Half-open.
struct IndexRange {
  int begin = 0;
  int end = 0;
  bool empty() const { return begin >= end; }
};

// One sequence's pages in a pool: pages[i] holds tokens from (first_page + i) * page_tokens on.
struct SequencePages {
  absl::Span<const PageIndex> pages;
  int first_page = 0;
};

// The copies that bring `tokens` of `layers` of one sequence from a source rank's pool to a
// destination rank's, ordered by destination page, layer, plane, head and token, adjacent runs
// merged.
//
// Over all source ranks each byte of the destination is written exactly once: of source ranks that
// hold the same head, one sends to a given destination rank. Empty when this pair exchanges
// nothing. The ranges must lie in the pages and the layouts must be compatible.
std::vector<CopyRun> PlanTransfer(const KvLayout& source, SequencePages source_pages, const KvLayout& destination,
                                  SequencePages destination_pages, IndexRange tokens, IndexRange layers);

}  // namespace tandem
