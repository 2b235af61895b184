#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/copy_shape.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Packs `runs` into `packed` and, where they are unlike, `extents`, each with room for as many. INVALID_ARGUMENT:
// offsets or sizes that are negative or no multiples of 16 bytes. OUT_OF_RANGE: runs too far from the pools' beginnings
// for their alignment (64 GiB at 16 bytes). Nothing of the output counts then.
absl::StatusOr<CopyShape> PackRuns(absl::Span<const CopyRun> runs, DeviceRun* packed, DeviceExtent* extents);

}  // namespace tandem
