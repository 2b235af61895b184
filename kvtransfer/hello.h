#pragma once

#include <string>

#include "absl/status/status.h"
#include "kvtransfer/wire.h"

namespace tandem {

// This process's greeting: host, pid and UCX version filled in.
HelloMessage MakeHello(const std::string& worker_id, Incarnation incarnation, const KvLayout& layout,
                       uint64_t model_fingerprint, bool checksums, std::string peer_secret);

// Whether the sender of a greeting knows this cluster's secret, if it has one. To be asked before anything is done for
// it.
bool IsOfThisCluster(const HelloMessage& own, const HelloMessage& other);

// INVALID_ARGUMENT, with both values (but of the secret), unless these two can share a link: the cluster's secret,
// protocol, model, UCX, and layouts between which KV can move, with checksums if they are on. Both sides ask it.
absl::Status CheckHellos(const HelloMessage& prefill, const HelloMessage& decode);

}  // namespace tandem
