#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvtransfer/shm/shm_transport.h"
#include "kvtransfer/transport.h"

namespace tandem {

// The transports of a topology's `links.transports`, in that order. `pool`: this process's own, or
// null where it only writes to others. UNIMPLEMENTED for one that this build lacks.
absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(const std::vector<std::string>& names,
                                                                       const ShmPool* pool);

// The version of UCX that this build moves KV with; empty without it.
std::string TransportVersion();

}  // namespace tandem
