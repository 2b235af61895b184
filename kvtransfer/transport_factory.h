#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvtransfer/loopback/loopback_transport.h"
#include "kvtransfer/shm/shm_transport.h"
#include "kvtransfer/transport.h"

namespace tandem {

// The transports of a topology's `links.transports`, in that order. `pool`: this process's own, or
// null where it only writes to others. UNIMPLEMENTED for one that this build lacks.
absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(const std::vector<std::string>& names,
                                                                       const ShmPool* pool);

// Faults for drills: "flip_byte_every=3,peer=decode-0", with the names of TransferFaults' fields.
// INVALID_ARGUMENT names an unknown one.
absl::StatusOr<TransferFaults> ParseTransferFaults(absl::string_view text);

}  // namespace tandem
