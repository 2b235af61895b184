#pragma once

#include "common/topology.h"
#include "engine/engine.h"

namespace tandem {

// The engine's options for a worker of a topology's pool.
Engine::Options EngineOptions(const Topology& topology, const PoolSettings& pool);

}  // namespace tandem
