#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// What goes wrong on a link, for tests and fault drills.
struct TransferFaults {
  int flip_byte_every = 0;        // Every n-th write call damages one byte it wrote; 0: never.
  int drop_write_every = 0;       // Every n-th write call copies nothing, and says it did.
  int duplicate_write_every = 0;  // Every n-th write call is carried out twice.
  int delay_polls = 0;            // A flush is reported done only after this many polls.
  int late_write_ms = 0;          // Bytes are written only this long after the call.
  int fail_flush_every = 0;       // After every n-th write call the flush fails, which ends the link.
  int drop_acks = 0;              // 1: the sender does not hear Acks.
  std::string peer;               // Only on the link to this worker; empty: on all.
  bool any() const {
    return flip_byte_every > 0 || drop_write_every > 0 || duplicate_write_every > 0 || delay_polls > 0 ||
           fail_flush_every > 0 || drop_acks > 0 || late_write_ms > 0;
  }
};

// Faults for drills: "flip_byte_every=3,peer=decode-0", with the names of TransferFaults' fields.
// INVALID_ARGUMENT names an unknown one.
absl::StatusOr<TransferFaults> ParseTransferFaults(absl::string_view text);

// Adds faults to any pool that is written to from `memory`, which outlives it. A flipped byte is flipped in a copy of
// the source, never in the source; checksums are those of the source.
std::unique_ptr<RemotePool> WithFaults(std::unique_ptr<RemotePool> pool, PoolMemory& memory,
                                       const TransferFaults& faults);

}  // namespace tandem
