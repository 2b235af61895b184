#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvtransfer/nvlink/gpu_driver.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// What the transports of a pool in GPU memory borrow; all of it outlives them.
struct GpuTransportParts {
  GpuDriver* driver = nullptr;
  PoolMemory* memory = nullptr;
  const GpuPool* pool = nullptr;
  std::function<bool()> source_is_computing;  // As of PagePusher.
};

// Candidates for links between pools in GPU memory, best first: over NVLink by mapped memory; by UCX where it reaches
// the pools; by UCX through bounce buffers on the GPUs, or on the hosts.
inline const std::vector<std::string> kGpuTransports = {"nvlink", "ucx", "ucx_staged", "ucx_host_staged"};

// Transports of these names, in order. Makes the memory's device the calling thread's. UNIMPLEMENTED: not in this
// build. UNAVAILABLE: UCX cannot start. RESOURCE_EXHAUSTED: the device has no memory for copy lists.
absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeGpuTransports(const std::vector<std::string>& names,
                                                                          const GpuTransportParts& parts);

}  // namespace tandem
