#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace tandem {

// Hands items from many threads to the one that owns the state they change.
//
// Not bounded: what may be posted is bounded where it enters (admission, limits of workers), since ends and aborts must
// never be lost here. Items come out in the order in which they went in.
//
// Thread-safety: thread-safe; one consumer. mu_ is a leaf lock.
// Ownership: owns the items that wait; Close() keeps them for the consumer to take.
template <typename T>
class Mailbox {
 public:
  // False when closed; the item is then left as it was.
  bool Push(T&& item) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closed_) return false;
    items_.push_back(std::move(item));
    return true;
  }

  // Everything that waits, at once; waits up to `timeout` for a first item or Close().
  std::vector<T> TakeAll(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_) {
    std::vector<T> taken;
    absl::MutexLock lock(&mu_);
    if (items_.empty() && !closed_ && timeout > absl::ZeroDuration()) {
      mu_.AwaitWithTimeout(absl::Condition(this, &Mailbox::HasNews), timeout);
    }
    taken.swap(items_);
    return taken;
  }

  void Close() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    closed_ = true;
  }

  bool closed() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return closed_;
  }

 private:
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return closed_ || !items_.empty(); }

  mutable absl::Mutex mu_;
  std::vector<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace tandem
