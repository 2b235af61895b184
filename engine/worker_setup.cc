#include "engine/worker_setup.h"

#include <filesystem>
#include <functional>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/cluster_secret.h"
#include "common/status_macros.h"
#include "common/tls/tls_identity.h"

namespace tandem {

Engine::Options EngineOptions(const Topology& topology, const ProcessPlan& process) {
  const PoolSettings& pool = topology.pools[process.pool];
  return {.precision = topology.model.precision,
          .gpu = process.gpu,
          .threads = pool.threads,
          .kv_memory_bytes = pool.kv_memory_bytes,
          .float8_kv = topology.model.float8_kv,
          .page_tokens = pool.page_tokens,
          .max_step_tokens = static_cast<int>(pool.max_step_tokens),
          .max_prefill_beside_decode = static_cast<int>(pool.max_prefill_beside_decode),
          .max_running = static_cast<int>(pool.max_running_requests),
          .max_waiting = static_cast<int>(pool.max_waiting_requests),
          .layer_groups = topology.links.layer_groups,
          .run_ahead = process.gpu.has_value(),
          .shard = {.rank = process.tp_rank, .size = pool.parallelism.tp}};
}

RankGroup::Options RankOptions(const Topology& topology, const ProcessPlan& process) {
  const PoolSettings& pool = topology.pools[process.pool];
  std::error_code error;
  const std::string file = std::filesystem::weakly_canonical(topology.file, error);
  const size_t worker = std::hash<std::string>()(
      absl::StrCat(file, "\n", topology.router.listen, "\n", pool.name, "\n", process.replica));
  return {.name = absl::StrCat("tandem-ranks-", absl::Hex(worker, absl::kZeroPad16)),
          .rank = process.tp_rank,
          .size = pool.parallelism.tp};
}

absl::StatusOr<ProcessNeeds> CheckWorker(const Topology& topology, const ProcessPlan& process) {
  RETURN_IF_ERROR(ReadClusterSecret(topology).status());
  RETURN_IF_ERROR(LoadTls(topology.tls).status());
  const PoolSettings& pool = topology.pools[process.pool];
  auto at = [](const std::string& where, const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
  };
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(topology.model.path);
  if (!checkpoint.ok()) return at(absl::StrCat(topology.model.where, ": model.path"), checkpoint.status());
  absl::StatusOr<Engine::Needs> needs = Engine::Plan(**checkpoint, EngineOptions(topology, process));
  if (!needs.ok()) return at(absl::StrCat(pool.where, ": pool ", pool.name), needs.status());
  return ProcessNeeds{.weight_bytes = needs->weight_bytes,
                      .kv_bytes = needs->layout.pool_bytes(),
                      .kv_pages = needs->layout.num_pages,
                      .max_context_tokens = needs->max_context_tokens};
}

}  // namespace tandem
