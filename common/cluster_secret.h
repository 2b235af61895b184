#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/topology.h"

namespace tandem {

// A secret for a topology that names none: of who starts its processes, else, where it needs one, the launcher draws
// it.
inline constexpr char kDrawnSecretVariable[] = "TANDEM_CLUSTER_SECRET";

// Whether others than this machine's processes can reach host:port, or a host. False for "".
bool IsReachable(absl::string_view address);

// Nothing keeps other programs from joining its processes: no secret in the topology or the environment, and no
// certificates, which processes show each other over TCP only.
bool NeedsSecret(const Topology& topology);

// The secret of the cluster, else the one that was drawn; "" where there is none. Errors as of ReadSecret, with the
// topology's file and line, or the variable.
absl::StatusOr<std::string> ReadClusterSecret(const Topology& topology);

}  // namespace tandem
