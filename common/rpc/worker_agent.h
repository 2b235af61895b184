#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/completion_loop.h"
#include "common/worker_state.h"

namespace tandem {

// Keeps a worker registered with one router: dials, registers, heartbeats, and dials again after a
// loss.
//
// Thread-safety: thread-safe.
// Ownership: owns its thread and connection; loop and callbacks must outlive it.
class WorkerAgent {
 public:
  struct Options {
    std::string router_address;
    WorkerRegistration registration;
    absl::Duration heartbeat = absl::Milliseconds(250);
    // State now; called on the agent's thread. Prefix-cache changes are those since the last call,
    // and `restart` is true in the first call of each connection: then all that is held must be
    // reported.
    std::function<WorkerHeartbeat(bool restart)> collect;
    std::function<void(const RouterDirective&)> on_directive;  // Called on the loop's thread; must not block.
    std::function<void()> on_lost;  // A connection has ended, or could not be made; on the agent's thread. Or null.
  };
  // The loop must be handled by another thread until the agent is destroyed.
  WorkerAgent(CompletionLoop& loop, Options options);
  ~WorkerAgent();

 private:
  class Stream;
  void Main();
  bool StopRequested() ABSL_LOCKS_EXCLUDED(mu_);
  // Sleeps for `duration`; false when asked to stop.
  bool Sleep(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mu_);

  CompletionLoop& loop_;
  const Options options_;
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace tandem
