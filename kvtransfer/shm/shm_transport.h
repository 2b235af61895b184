#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kvtransfer/transport.h"

namespace tandem {

// Pool memory that other processes of the host can map: an anonymous file (memfd), so nothing is
// left behind whatever way the process ends. All pages are touched when it is made, so that no
// transfer pays for that.
//
// Thread-safety: immutable after Create.
// Ownership: owns the memory; a peer's mapping keeps it alive, but nobody reads it then.
class ShmPool {
 public:
  // RESOURCE_EXHAUSTED when the machine has not that much memory.
  static absl::StatusOr<std::unique_ptr<ShmPool>> Create(uint64_t size_bytes);
  ~ShmPool();
  uint8_t* base() const { return base_; }
  uint64_t size_bytes() const { return size_bytes_; }
  int fd() const { return fd_; }

 private:
  ShmPool(int fd, uint8_t* base, uint64_t size_bytes) : fd_(fd), base_(base), size_bytes_(size_bytes) {}
  const int fd_;
  uint8_t* const base_;
  const uint64_t size_bytes_;
};

// Peers on the same host map the pool through /proc/PID/fd/FD and copy into it.
// `pool` may be null in a process that only writes to others; it outlives the transport.
std::unique_ptr<Transport> NewShmTransport(const ShmPool* pool);

}  // namespace tandem
