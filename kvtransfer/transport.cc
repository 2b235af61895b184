#include "kvtransfer/transport.h"

#include "absl/strings/str_cat.h"

namespace tandem {

absl::Status CheckRuns(absl::Span<const CopyRun> runs, uint64_t size_bytes) {
  for (const CopyRun& run : runs) {
    const auto to = static_cast<uint64_t>(run.destination), bytes = static_cast<uint64_t>(run.bytes);
    if (run.destination < 0 || run.bytes < 0 || bytes > size_bytes || to > size_bytes - bytes) {
      return absl::OutOfRangeError(absl::StrCat("write of ", run.bytes, " bytes at ", run.destination,
                                                " leaves the peer's pool of ", size_bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status AddSums(PoolMemory& memory, const WriteOrder& order) {
  if (order.sums == nullptr) return absl::OkStatus();
  return memory.AddSums(order.source_base, PoolSide::kSource, order.runs, order.page_of_run, *order.sums);
}

}  // namespace tandem
