#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/copy_shape.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Packs `runs` into `packed` and, where they are unlike, `extents`, each with room for as many. INVALID_ARGUMENT:
// offsets or sizes that are no multiples of 16 bytes. OUT_OF_RANGE: a run that leaves its pool, or pools too large for
// the alignment of their runs (64 GiB at 16 bytes). Nothing of the output counts then.
absl::StatusOr<CopyShape> PackRuns(absl::Span<const CopyRun> runs, uint64_t source_bytes, uint64_t destination_bytes,
                                   DeviceRun* packed, DeviceExtent* extents);

}  // namespace tandem
