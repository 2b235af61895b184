#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Memory of a device.
struct DeviceBytes {
  uint8_t* base = nullptr;
  uint64_t bytes = 0;
  int device = 0;
  DeviceBytes() = default;
  DeviceBytes(uint8_t* memory, uint64_t size, int owner) : base(memory), bytes(size), device(owner) {}
  explicit DeviceBytes(const GpuPool& pool) : DeviceBytes(pool.base(), pool.bytes(), pool.device()) {}
};

// Content of GPU pools in tests; each waits for the device. INTERNAL: the device failed.

absl::Status FillPool(const DeviceBytes& pool, uint64_t seed);
absl::Status PoisonPool(const DeviceBytes& pool);
// OK when the runs' bytes are those of a pool filled with `seed`, and all others are poison. INTERNAL says how many are
// not.
absl::Status CheckPool(const DeviceBytes& pool, absl::Span<const CopyRun> runs, uint64_t seed);

inline absl::Status FillPool(const GpuPool& pool, uint64_t seed) { return FillPool(DeviceBytes(pool), seed); }
inline absl::Status PoisonPool(const GpuPool& pool) { return PoisonPool(DeviceBytes(pool)); }
inline absl::Status CheckPool(const GpuPool& pool, absl::Span<const CopyRun> runs, uint64_t seed) {
  return CheckPool(DeviceBytes(pool), runs, seed);
}

}  // namespace tandem
