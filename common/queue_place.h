#pragma once

#include "absl/time/time.h"

namespace tandem {

// Where a request waits among others: higher priority first, then the one whose first token is wanted sooner.
struct QueuePlace {
  int priority = 0;
  absl::Time due = absl::InfiniteFuture();

  // Before that one.
  friend bool operator<(const QueuePlace& a, const QueuePlace& b) {
    if (a.priority != b.priority) return a.priority > b.priority;
    return a.due < b.due;
  }
};

}  // namespace tandem
