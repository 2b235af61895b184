#pragma once

#include <cstddef>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/mailbox.h"

namespace tandem {

// A thread for texts so long that turning them into token ids would hold up the streams of others.
//
// Thread-safety: thread-safe. mu_ is a leaf lock.
// Ownership: owns the thread, and the work that waits.
class LongTexts {
 public:
  // Requests longer than this go here.
  static constexpr size_t kLongBytes = 8 << 10;

  explicit LongTexts(size_t max_waiting_bytes = size_t{256} << 20);
  ~LongTexts() { Stop(); }

  // Gets OK, or UNAVAILABLE where there is no time left for it: then it says so to whoever waits.
  using Work = absl::AnyInvocable<void(absl::Status status)>;

  // Runs `work`, which holds a text of this size, after what came before. RESOURCE_EXHAUSTED (QUEUE_FULL) when too much
  // waits already, UNAVAILABLE after Stop: then it never runs.
  absl::Status Run(size_t bytes, Work work) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells what waits, and joins; idempotent.
  void Stop();

 private:
  struct Text {
    size_t bytes;
    Work work;
  };
  void Main();

  const size_t max_waiting_bytes_;
  Mailbox<Text> texts_;
  absl::Mutex mu_;
  size_t waiting_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace tandem
