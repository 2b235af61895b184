#include "kvtransfer/page_sums.h"

#include <algorithm>
#include <cstring>

#include "absl/container/flat_hash_map.h"
#include "kvtransfer/word_sum.h"

namespace tandem {

PageRuns CutAtPages(absl::Span<const CopyRun> runs, int64_t page_bytes, absl::Span<const PageIndex> pages) {
  absl::flat_hash_map<int64_t, uint32_t> place_of_page;
  place_of_page.reserve(pages.size());
  for (size_t i = 0; i < pages.size(); ++i) place_of_page[pages[i]] = static_cast<uint32_t>(i);
  PageRuns cut;
  cut.runs.reserve(runs.size());
  cut.page_of_run.reserve(runs.size());
  for (CopyRun rest : runs) {
    while (rest.bytes > 0) {
      const int64_t page = rest.destination / page_bytes;
      const int64_t bytes = std::min(rest.bytes, (page + 1) * page_bytes - rest.destination);
      cut.runs.push_back({rest.source, rest.destination, bytes});
      cut.page_of_run.push_back(place_of_page.at(page));
      rest = {rest.source + bytes, rest.destination + bytes, rest.bytes - bytes};
    }
  }
  return cut;
}

void AddHostSums(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                 absl::Span<const uint32_t> page_of_run, PageSums& sums) {
  for (size_t i = 0; i < runs.size(); ++i) {
    const uint8_t* bytes = pool + (side == PoolSide::kSource ? runs[i].source : runs[i].destination);
    const auto first = static_cast<uint64_t>(runs[i].destination) / 8, words = static_cast<uint64_t>(runs[i].bytes) / 8;
    uint64_t sum = 0;
    for (uint64_t index = 0; index < words; ++index) {
      uint64_t word;
      std::memcpy(&word, bytes + 8 * index, 8);
      sum += SumOfWord(word, first + index);
    }
    sums[page_of_run[i]] += sum;
  }
}

uint32_t FoldSum(uint64_t sum) {
  // As XXH3 ends: what differs in any bit of the sum differs in many of the result.
  sum ^= sum >> 37;
  sum *= 0x165667919E3779F9ull;
  return static_cast<uint32_t>(sum ^ (sum >> 32));
}

std::vector<uint32_t> FoldSums(const PageSums& sums) {
  std::vector<uint32_t> folded(sums.size());
  std::transform(sums.begin(), sums.end(), folded.begin(), FoldSum);
  return folded;
}

}  // namespace tandem
