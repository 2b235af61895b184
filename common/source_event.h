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
  // The device's own event (a cudaEvent_t), which its other streams may wait for; null: there is none.
  virtual void* device_event() const { return nullptr; }
};

}  // namespace tandem
