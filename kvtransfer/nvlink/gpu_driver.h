#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

// How far a pool can be shared.
enum class PoolReach {
  kHost,    // Processes of this host, by file descriptor.
  kFabric,  // Every host of the NVLink domain, by fabric handle; needs an IMEX channel.
};

// What another process imports a pool with.
struct ShareableHandle {
  PoolReach reach = PoolReach::kHost;
  int fd = -1;         // kHost: a descriptor of this process; whoever holds the handle closes it.
  std::string fabric;  // kFabric: 64 bytes that mean the same on every host.
};

// The few calls on GPU memory that pools are made of, so that their bookkeeping is tested without a GPU.
//
// Thread-safety: thread-safe.
// Ownership: what Create, Import and Map return belongs to the caller, who gives it back.
class GpuDriver {
 public:
  // Memory of a device that is not mapped yet, own or imported.
  using Allocation = uint64_t;

  virtual ~GpuDriver() = default;
  // Sizes are multiples of it.
  virtual absl::StatusOr<uint64_t> Granularity(int device, PoolReach reach) = 0;
  // RESOURCE_EXHAUSTED: no room. PERMISSION_DENIED: this process may not share so far. UNIMPLEMENTED: the device
  // cannot.
  virtual absl::StatusOr<Allocation> Create(int device, uint64_t bytes, PoolReach reach) = 0;
  virtual absl::StatusOr<ShareableHandle> Export(Allocation allocation, PoolReach reach) = 0;
  // Does not take the handle's descriptor over.
  virtual absl::StatusOr<Allocation> Import(const ShareableHandle& handle) = 0;
  // Maps all of it, readable and writable for kernels and copies of `device`.
  virtual absl::StatusOr<uint8_t*> Map(Allocation allocation, uint64_t bytes, int device) = 0;
  virtual void Unmap(uint8_t* base, uint64_t bytes) = 0;
  // The memory goes when it is mapped nowhere, in no process.
  virtual void Release(Allocation allocation) = 0;
};

}  // namespace tandem
