#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

enum class CopyMethod {
  kKernel,      // Our own, on multiprocessors of the source.
  kCopyEngine,  // One order for each run.
};
absl::string_view CopyMethodName(CopyMethod method);

// What the choice of a method depends on.
struct CopyLoad {
  int64_t runs = 0;
  int64_t bytes = 0;
  bool source_is_computing = false;  // Kernels of others fill the source's multiprocessors.
  bool sees_destination = true;      // This process sees the destination's device.
  bool is_aligned = true;            // All offsets and sizes are multiples of 16 bytes.
};
CopyLoad MakeCopyLoad(absl::Span<const CopyRun> runs, bool source_is_computing, bool sees_destination);

struct CopyChoice {
  CopyMethod method = CopyMethod::kKernel;
  // kKernel: thread blocks, each of which keeps a multiprocessor busy. More move bytes faster, and so take computing
  // fewer multiprocessors for each byte.
  int blocks = 32;
  bool operator==(const CopyChoice&) const = default;
};

// The rule, with the figures that it rests on in docs/kv_transfer.md:
// - Only the copy engine takes runs that are no multiples of 16 bytes.
// - A process that does not see the destination's device copies by kernel only: orders to its copy engine are then
//   carried out by a kernel of the driver, several times slower.
// - Few runs, and runs of 4 MiB and more, go to the copy engine, which takes no multiprocessor.
// - A computing source lets a kernel wait for the end of blocks that run already, a millisecond and more: as long as
// the
//   copy engine's time for all runs is shorter than that, it gets them. More would hold up the launches of those who
//   compute: orders to the copy engine are given under a lock of the process.
// - Everything else is the kernel's.
CopyChoice ChooseCopyMethod(const CopyLoad& load);

}  // namespace tandem
