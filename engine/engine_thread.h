#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "common/mailbox.h"
#include "engine/engine.h"

namespace tandem {

// The engine's state as heartbeats and metrics tell it.
struct EngineStats {
  int running = 0, waiting = 0, held = 0;
  int64_t waiting_tokens = 0;
  int64_t turns = 0;  // Of the thread: goes on when it is idle.
  int64_t preemptions = 0;
  std::vector<std::pair<std::string, int>> pages;  // By state; sums to the pool.
  int free_pages = 0;                              // Free or cached.
  PrefixIndex::Changes prefix_changes;             // Since the last TakeStats.
};

// The thread that owns an engine: runs posted work, then a step, then work again; sleeps when there
// is none.
//
// Thread-safety: thread-safe.
// Ownership: owns the engine and the thread. Hooks are called on the thread and must outlive it.
class EngineThread {
 public:
  struct Hooks {
    std::function<void(Engine&, std::vector<SequenceEvent>)> on_events;
    std::function<void(const Engine&, const KvProgress&)> on_progress;
    // After each turn, and every 20 ms when idle: for deadlines that the engine does not know.
    std::function<void(Engine&)> on_turn;
  };
  EngineThread(std::unique_ptr<Engine> engine, Hooks hooks);
  ~EngineThread();

  // Runs `work` on the thread between two steps. False after Stop.
  bool Post(absl::AnyInvocable<void(Engine&)> work);
  // Waits until `condition`, evaluated on the thread between steps, is true; false after `timeout`
  // or Stop.
  bool AwaitCondition(std::function<bool()> condition, absl::Duration timeout);
  // Finishes the turn that runs, drops posted work and joins.
  void Stop();

  // As of the last turn.
  EngineStats TakeStats() ABSL_LOCKS_EXCLUDED(mu_);
  // Engine facts that never change.
  const Engine& engine() const { return *engine_; }

 private:
  void Main();
  void PublishStats() ABSL_LOCKS_EXCLUDED(mu_);

  const std::unique_ptr<Engine> engine_;
  const Hooks hooks_;
  Mailbox<absl::AnyInvocable<void(Engine&)>> inbox_;
  absl::Mutex mu_;
  EngineStats stats_ ABSL_GUARDED_BY(mu_);
  int64_t turns_ = 0;  // The thread only.
  std::thread thread_;
};

}  // namespace tandem
