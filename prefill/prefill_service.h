#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "common/rpc/session_server.h"

namespace tandem {

// The RPC edge of a prefill worker: tandem.v1.Prefill on top of a session server, which outlives
// it.
std::unique_ptr<grpc::Service> NewPrefillService(SessionServer& sessions);

}  // namespace tandem
