#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/ids.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Checksums of what a hand-over writes: one for each granted page, a sum over the words that were written there
// (word_sum.h). The sender takes them from its own pool as it copies, the receiver from what arrived.
//
// Sums grow with every write, in any order; nothing may be written twice. Sizes and offsets are multiples of 8 bytes.
using PageSums = std::vector<uint64_t>;

// Runs with the page that each writes to.
struct PageRuns {
  std::vector<CopyRun> runs;          // None crosses a border between destination pages.
  std::vector<uint32_t> page_of_run;  // A place in the hand-over's pages.
};

// Cuts `runs`, as PlanTransfer makes them for the destination's `pages` of `page_bytes` each, at the pages' borders.
PageRuns CutAtPages(absl::Span<const CopyRun> runs, int64_t page_bytes, absl::Span<const PageIndex> pages);

// Which end of the runs lies in a pool.
enum class PoolSide { kSource, kDestination };

// Adds what lies at one side of the runs, in host memory at `pool`, to `sums`.
void AddHostSums(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                 absl::Span<const uint32_t> page_of_run, PageSums& sums);

// A sum as it travels in a Commit.
uint32_t FoldSum(uint64_t sum);
std::vector<uint32_t> FoldSums(const PageSums& sums);

}  // namespace tandem
