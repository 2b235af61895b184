#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "common/worker_state.h"
#include "engine/engine_thread.h"

namespace tandem {

// Makes the heartbeats of a worker out of its engine's state, for one router or several: each
// learns of every page hash once.
//
// Thread-safety: thread-safe.
// Ownership: borrows the engine thread, which outlives it.
class WorkerReporter {
 public:
  explicit WorkerReporter(EngineThread& engine) : engine_(engine) {}

  // The next heartbeat for one router; `restart`: it knows nothing yet.
  WorkerHeartbeat Collect(const std::string& router, bool restart) ABSL_LOCKS_EXCLUDED(mu_);
  // The next heartbeat for this router is as if it knew nothing.
  void TellAllAgain(const std::string& router) ABSL_LOCKS_EXCLUDED(mu_);
  // A router is lost: nothing is kept for it until it is told all again.
  void Forget(const std::string& router) ABSL_LOCKS_EXCLUDED(mu_);
  void SetLink(const LinkReport& link) ABSL_LOCKS_EXCLUDED(mu_);
  // "ready", "draining" or "degraded".
  void SetState(const std::string& state) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Feed {
    PrefixIndex::Changes changes;  // Not told yet.
    int64_t sequence = 0;
    bool tells_all = false;
  };
  EngineThread& engine_;
  mutable absl::Mutex mu_;
  std::string state_ ABSL_GUARDED_BY(mu_) = "ready";
  absl::flat_hash_map<Incarnation, LinkReport> links_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<uint64_t> held_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Feed> feeds_ ABSL_GUARDED_BY(mu_);  // By router.
};

}  // namespace tandem
