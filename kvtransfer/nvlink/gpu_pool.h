#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kvtransfer/nvlink/gpu_driver.h"

namespace tandem {

// A rank's KV pool in GPU memory: one allocation that peers may map.
//
// Thread-safety: immutable after Create.
// Ownership: owns memory and mapping; borrows the driver. The memory outlives this object while a peer maps it.
class GpuPool {
 public:
  // `bytes` are rounded up to the driver's granularity. RESOURCE_EXHAUSTED: the device has no room.
  // FAILED_PRECONDITION: kFabric on a host that does not allow it, with the cure.
  static absl::StatusOr<std::unique_ptr<GpuPool>> Create(GpuDriver& driver, int device, uint64_t bytes,
                                                         PoolReach reach);
  ~GpuPool();

  uint8_t* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }
  int device() const { return device_; }
  PoolReach reach() const { return reach_; }
  // A new handle each time.
  absl::StatusOr<ShareableHandle> Export() const { return driver_.Export(allocation_, reach_); }

 private:
  GpuPool(GpuDriver& driver, int device, PoolReach reach, GpuDriver::Allocation allocation, uint8_t* base,
          uint64_t bytes)
      : driver_(driver), device_(device), reach_(reach), allocation_(allocation), base_(base), bytes_(bytes) {}

  GpuDriver& driver_;
  const int device_;
  const PoolReach reach_;
  const GpuDriver::Allocation allocation_;
  uint8_t* const base_;
  const uint64_t bytes_;
};

// A peer's pool, mapped for the kernels and copies of a device of ours.
//
// Thread-safety: immutable after Import.
// Ownership: owns the mapping, which keeps the memory alive even when the peer is dead; borrows the driver.
class ImportedPool {
 public:
  // `bytes`: what the peer's pool says of itself. INTERNAL, RESOURCE_EXHAUSTED: what the driver said.
  static absl::StatusOr<std::unique_ptr<ImportedPool>> Import(GpuDriver& driver, const ShareableHandle& handle,
                                                              uint64_t bytes, int device);
  ~ImportedPool();
  uint8_t* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

 private:
  ImportedPool(GpuDriver& driver, GpuDriver::Allocation allocation, uint8_t* base, uint64_t bytes)
      : driver_(driver), allocation_(allocation), base_(base), bytes_(bytes) {}

  GpuDriver& driver_;
  const GpuDriver::Allocation allocation_;
  uint8_t* const base_;
  const uint64_t bytes_;
};

// The peers' pools that are mapped here, each once.
//
// Thread-safety: the link thread only.
// Ownership: borrows the driver, and the pools, whose owners are their links: a pool is unmapped when the last link to
// it is gone, and a link keeps its reference until the event of its last copy has come. A dead peer's memory stays
// allocated until then, and success of a copy is no proof of its life.
class ImportCache {
 public:
  ImportCache(GpuDriver& driver, int device) : driver_(driver), device_(device) {}

  // Region `region` of the worker's life `peer` (which no other worker shares), mapped now if it was not yet. Errors as
  // of Import, with the peer's name; INVALID_ARGUMENT: mapped already, with another size.
  absl::StatusOr<std::shared_ptr<const ImportedPool>> Acquire(Incarnation peer, int region,
                                                              const ShareableHandle& handle, uint64_t bytes);

 private:
  GpuDriver& driver_;
  const int device_;
  absl::flat_hash_map<std::pair<Incarnation, int>, std::weak_ptr<const ImportedPool>> pools_;
};

}  // namespace tandem
