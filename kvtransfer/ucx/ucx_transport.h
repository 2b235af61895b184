#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvtransfer/transport.h"

namespace tandem {

// One-sided writes by UCX (put, then flush); over TCP on a machine without RDMA. UCX chooses the
// device; set UCX_TLS in the environment to narrow it.
//
// UNAVAILABLE when UCX cannot start.
absl::StatusOr<std::unique_ptr<Transport>> NewUcxTransport();

// "1.22.0", of the library in use. Both ends of a link must have the same.
std::string UcxVersion();

}  // namespace tandem
