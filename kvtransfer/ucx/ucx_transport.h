#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

struct UcxOptions {
  PoolMemory* memory = &HostMemory();  // Of what is exported, and of what is written.
};

// One-sided writes by UCX (put, then flush); over TCP on a machine without RDMA, and between GPUs of one host over
// NVLink where the pool is memory that UCX reaches. Set UCX_TLS in the environment for other devices of UCX.
//
// UNAVAILABLE when UCX cannot start.
absl::StatusOr<std::unique_ptr<Transport>> NewUcxTransport(const UcxOptions& options = {});

// "1.22.0", of the library in use. Both ends of a link must have the same.
std::string UcxVersion();

}  // namespace tandem
