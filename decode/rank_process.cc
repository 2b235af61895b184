#include "decode/rank_process.h"

#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "common/log.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "engine/worker_setup.h"
#include "kvtransfer/worker_pool.h"

namespace tandem {
namespace {

// Ends the process on a signal that comes while rank 0 is waited for.
class EarlyEnd {
 public:
  EarlyEnd() {
    std::thread([has_met = has_met_] {
      AwaitTermination();
      if (!*has_met) _exit(0);
    }).detach();
  }
  void Disarm() { *has_met_ = true; }

 private:
  const std::shared_ptr<std::atomic<bool>> has_met_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace

absl::Status RunRankProcess(const Topology& topology, const ProcessPlan& plan) {
  EarlyEnd early_end;
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(topology.model.path));
  LogInfo("waiting for rank 0", {{"rank", plan.tp_rank}});
  ASSIGN_OR_RETURN(const std::unique_ptr<RankGroup> ranks, RankGroup::Join(RankOptions(topology, plan)));
  early_end.Disarm();
  Engine::Options options = EngineOptions(topology, plan);
  options.ranks = ranks.get();
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(std::move(checkpoint), options, Clock::Real()));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<WorkerPool> pool,
      WorkerPool::Create({.gpu = plan.gpu, .bytes = static_cast<uint64_t>(engine->layout().pool_bytes())}));
  engine->SetKvMemory(pool->base());
  RETURN_IF_ERROR(engine->WarmUp());
  LogInfo("following rank 0", {{"rank", plan.tp_rank}, {"kv_pages", engine->layout().num_pages}, {"pid", getpid()}});
  return engine->Follow();
}

}  // namespace tandem
