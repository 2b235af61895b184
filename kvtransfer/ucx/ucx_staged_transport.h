#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// Writes by UCX in few large messages, for links that want those, and for pools that UCX does not reach: runs are
// gathered into a bounce buffer, sent as one active message, and scattered into the pool by the side that owns it,
// which then says so. Names: "ucx_staged", and "ucx_host_staged" with the buffers of GPU pools in host memory.
struct UcxStagedOptions {
  PoolMemory* memory = &HostMemory();                  // Of the pools.
  PoolMemory::Place place = PoolMemory::Place::kPool;  // Of the bounce buffers.
  uint64_t chunk_bytes = 8u << 20;                     // Of a buffer; the peer's may be smaller. A multiple of 16.
  int buffers = 3;                                     // Of each link, at each side: more chunks are not under way.
};

// UNAVAILABLE when UCX cannot start.
absl::StatusOr<std::unique_ptr<Transport>> NewUcxStagedTransport(const UcxStagedOptions& options = {});

}  // namespace tandem
