#pragma once

#include "absl/status/statusor.h"

namespace tandem {

// When bytes that a device was told to compute are there: it carries out its work behind the host's back.
//
// Thread-safety: thread-safe. Ownership: owns the device's event.
class SourceEvent {
 public:
  virtual ~SourceEvent() = default;
  // INTERNAL: the device failed.
  virtual absl::StatusOr<bool> PollReady() const = 0;
};

}  // namespace tandem
