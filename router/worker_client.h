#pragma once

#include <memory>

#include "router/router_core.h"

namespace tandem {

// Opens the command stream to a worker by gRPC. Its events and its end are told to `core`, which
// outlives the client; destroying the client cancels the stream and waits for its last callback.
std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core);

}  // namespace tandem
