#pragma once

#include "absl/time/time.h"

namespace tandem {

// The source of "now" for everything that waits or expires, so that tests move time by hand.
//
// Thread-safety: thread-safe.
// Ownership: borrowed everywhere; outlives its users.
class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back, whatever happens to the wall clock.
  virtual absl::Time Now() const = 0;

  // The machine's steady clock.
  static const Clock& Real();
};

}  // namespace tandem
