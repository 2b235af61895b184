#include "engine/worker_setup.h"

namespace tandem {

Engine::Options EngineOptions(const Topology& topology, const PoolSettings& pool) {
  return {.precision = topology.model.precision,
          .threads = pool.threads,
          .kv_memory_bytes = pool.kv_memory_bytes,
          .page_tokens = pool.page_tokens,
          .max_step_tokens = static_cast<int>(pool.max_step_tokens),
          .max_running = static_cast<int>(pool.max_running_requests),
          .max_waiting = static_cast<int>(pool.max_waiting_requests),
          .layer_groups = topology.links.layer_groups};
}

}  // namespace tandem
