#include "decode/rank_process.h"

#include <unistd.h>

#include <memory>
#include <optional>
#include <utility>

#include "common/log.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "engine/worker_setup.h"
#include "kvtransfer/worker_pool.h"

namespace tandem {

absl::Status RunRankProcess(const Topology& topology, const ProcessPlan& plan) {
  auto end_on_signal = std::make_optional<EndOnSignal>();
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(topology.model.path));
  LogInfo("waiting for rank 0", {{"rank", plan.tp_rank}});
  ASSIGN_OR_RETURN(const std::unique_ptr<RankGroup> ranks, RankGroup::Join(RankOptions(topology, plan)));
  end_on_signal.reset();
  Engine::Options options = EngineOptions(topology, plan);
  options.ranks = ranks.get();
  std::unique_ptr<WorkerPool> pool;  // Outlives the engine that writes to it.
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(std::move(checkpoint), options, Clock::Real()));
  ASSIGN_OR_RETURN(
      pool, WorkerPool::Create({.gpu = plan.gpu, .bytes = static_cast<uint64_t>(engine->layout().pool_bytes())}));
  engine->SetKvMemory(pool->base());
  RETURN_IF_ERROR(engine->WarmUp());
  LogInfo("following rank 0", {{"rank", plan.tp_rank}, {"kv_pages", engine->layout().num_pages}, {"pid", getpid()}});
  const absl::Status status = engine->Follow();
  if (!status.ok()) RankGroup::EndProcess(status);
  return absl::OkStatus();
}

}  // namespace tandem
