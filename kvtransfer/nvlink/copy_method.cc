#include "kvtransfer/nvlink/copy_method.h"

#include <algorithm>

namespace tandem {
namespace {

constexpr int64_t kFewRuns = 2;
constexpr int64_t kLongRunBytes = int64_t{4} << 20;
// At about 1.2 us each: below the time for which a kernel may wait for computing blocks.
constexpr int64_t kRunsBesideComputing = 256;

}  // namespace

absl::string_view CopyMethodName(CopyMethod method) { return method == CopyMethod::kKernel ? "kernel" : "copy engine"; }

CopyLoad MakeCopyLoad(absl::Span<const CopyRun> runs, bool source_is_computing, bool sees_destination) {
  CopyLoad load{.runs = static_cast<int64_t>(runs.size()),
                .source_is_computing = source_is_computing,
                .sees_destination = sees_destination};
  int64_t bits = 0;
  for (const CopyRun& run : runs) {
    load.bytes += run.bytes;
    bits |= run.source | run.destination | run.bytes;
  }
  load.is_aligned = bits % 16 == 0;
  return load;
}

CopyChoice ChooseCopyMethod(const CopyLoad& load) {
  const int64_t engine_runs = load.source_is_computing ? kRunsBesideComputing : kFewRuns;
  const bool long_runs = load.runs > 0 && load.bytes / load.runs >= kLongRunBytes;
  if (!load.is_aligned) return {.method = CopyMethod::kCopyEngine};
  if (load.sees_destination && (load.runs <= engine_runs || long_runs)) return {.method = CopyMethod::kCopyEngine};
  return {.method = CopyMethod::kKernel};
}

}  // namespace tandem
