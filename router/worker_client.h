#pragma once

#include <memory>

#include "common/rpc/completion_loop.h"
#include "router/router_core.h"

namespace tandem {

// Opens the command stream to a worker by gRPC, on the loop at which the core's owner thread waits. Its events and its
// end are told to `core`, until the client is destroyed, which cancels the stream. Loop and core outlive the client;
// the loop must be drained after it.
std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core,
                                                  CompletionLoop& loop);

}  // namespace tandem
