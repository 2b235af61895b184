#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/page_sums.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Memory of the kind of a pool, apart from it.
//
// Thread-safety: immutable but for what it holds. Ownership: owns the memory.
class PoolBuffer {
 public:
  virtual ~PoolBuffer() = default;
  virtual uint8_t* base() const = 0;
};

// A copy that is under way. It ends, whatever happens to this object; what it reads and writes must live until then.
//
// Thread-safety: not thread-safe. Ownership: owns the mark of its end.
class PendingCopy {
 public:
  virtual ~PendingCopy() = default;
  // INTERNAL: the device failed.
  virtual absl::StatusOr<bool> PollEnded() = 0;
  // Returns when it has ended, as every copy does in the time that its bytes take, or the device has failed.
  virtual void Wait() = 0;
};

// The memory that a pool lies in, a host's or a device's, and what is done with it on this side of a link.
//
// Thread-safety: thread-safe.
class PoolMemory {
 public:
  virtual ~PoolMemory() = default;
  // Whether only a device reads it.
  virtual bool is_device() const = 0;
  // Makes the device the calling thread's, for libraries that ask.
  virtual void UseOnThisThread() const = 0;
  // Returns when nothing that the device was told before is under way, or it has failed.
  virtual void WaitForDevice() const = 0;
  enum class Place { kPool, kHost };
  // Memory of the pool's kind, or the host's, where copies from and to the pool are as fast as they get.
  // RESOURCE_EXHAUSTED: there is none.
  virtual absl::StatusOr<std::unique_ptr<PoolBuffer>> Allocate(uint64_t bytes, Place place) = 0;
  virtual absl::StatusOr<std::unique_ptr<PoolBuffer>> MakeCopy(absl::Span<const uint8_t> content) = 0;
  // INTERNAL: the device failed.
  virtual absl::Status Read(const uint8_t* from, absl::Span<uint8_t> out) = 0;
  // Copies runs from one stretch of memory to another, each a pool or what Allocate gave. UNAVAILABLE: too much is
  // under way, try again. INTERNAL: the device failed.
  virtual absl::StatusOr<std::unique_ptr<PendingCopy>> StartCopy(const uint8_t* from, uint8_t* to,
                                                                 absl::Span<const CopyRun> runs) = 0;
  // Adds what lies at one side of the runs, in memory at `pool`, to `sums`; waits for the device. UNAVAILABLE: too
  // many calls at a time. INTERNAL: the device failed.
  virtual absl::Status AddSums(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                               absl::Span<const uint32_t> page_of_run, PageSums& sums) = 0;
};

// This process's ordinary memory; lives as long as the process.
PoolMemory& HostMemory();

}  // namespace tandem
