#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// A worker's KV pool, in memory that peers can reach, on the host or on a GPU, and the transports to others of its
// kind.
//
// Thread-safety: immutable after Create. Ownership: owns the memory; outlives the transports that it made.
class WorkerPool {
 public:
  struct Options {
    std::optional<int> gpu;  // Absent: the host's memory.
    uint64_t bytes = 0;
    std::function<bool()> gpu_is_computing;  // Thread-safe; chooses how pages are copied. Null: never.
  };
  // RESOURCE_EXHAUSTED: there is not that much memory. UNAVAILABLE: no such GPU. UNIMPLEMENTED: not in this build.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Create(Options options);
  virtual ~WorkerPool() = default;

  virtual uint8_t* base() const = 0;
  virtual PoolMemory& memory() const = 0;
  // Those of `links.transports`, in that order; once, and for one hub. Errors as of MakeTransports and
  // MakeGpuTransports.
  virtual absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(
      const std::vector<std::string>& names) = 0;
};

}  // namespace tandem
