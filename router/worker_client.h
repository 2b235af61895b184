#pragma once

#include <memory>

#include "router/router_core.h"

namespace tandem {

// Opens the command stream to a worker by gRPC. Its events and its end are told to `core`, which
// outlives the stream; destroying the client cancels it.
std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core);

}  // namespace tandem
