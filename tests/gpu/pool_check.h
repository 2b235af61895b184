#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Content of GPU pools in tests; each waits for the device. INTERNAL: the device failed.

absl::Status FillPool(const GpuPool& pool, uint64_t seed);
absl::Status PoisonPool(const GpuPool& pool);
// OK when the runs' bytes are those of a pool filled with `seed`, and all others are poison. INTERNAL says how many are
// not.
absl::Status CheckPool(const GpuPool& pool, absl::Span<const CopyRun> runs, uint64_t seed);

}  // namespace tandem
