#pragma once

#include <string>

#include "absl/status/status.h"
#include "kvtransfer/wire.h"

namespace tandem {

// This process's greeting: host, pid and UCX version filled in.
HelloMessage MakeHello(const std::string& worker_id, Incarnation incarnation, const KvLayout& layout,
                       uint64_t model_fingerprint, bool checksums);

// INVALID_ARGUMENT, with both values, unless these two can share a link: protocol, model, UCX, and
// layouts between which KV can move, with checksums if they are on. Both sides ask it.
absl::Status CheckHellos(const HelloMessage& prefill, const HelloMessage& decode);

}  // namespace tandem
