#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace tandem {

// Bounds the requests inside the router: over the limit a request is refused at once, with a hint
// when to come back, rather than queued.
//
// Thread-safety: not thread-safe; the router's owner thread owns it.
class Admission {
 public:
  explicit Admission(int64_t max_active) : max_active_(max_active) {}

  // Takes `count` places (one per sample) or none. RESOURCE_EXHAUSTED (QUEUE_FULL) with
  // retry-after: the time in which that many requests have lately finished.
  absl::Status Admit(int count, absl::Time now);
  // Gives one place back.
  void Release(absl::Time now);
  int64_t active() const { return active_; }

 private:
  const int64_t max_active_;
  int64_t active_ = 0;
  absl::Time last_release_ = absl::InfinitePast();
  absl::Duration mean_gap_ = absl::Milliseconds(100);  // Between releases; moving average.
};

}  // namespace tandem
