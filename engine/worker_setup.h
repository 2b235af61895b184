#pragma once

#include "common/process_needs.h"
#include "common/topology.h"
#include "engine/engine.h"

namespace tandem {

// The engine's options for a worker of a topology.
Engine::Options EngineOptions(const Topology& topology, const ProcessPlan& process);

// How the ranks of such a worker meet. Their name is of the file, the router's address and the worker.
RankGroup::Options RankOptions(const Topology& topology, const ProcessPlan& process);

// What such a worker will take, without loading the weights. Errors, with the topology's file and line: a model that
// cannot be opened, KV memory that holds no page.
absl::StatusOr<ProcessNeeds> CheckWorker(const Topology& topology, const ProcessPlan& process);

}  // namespace tandem
