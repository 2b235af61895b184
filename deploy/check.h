#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/topology.h"

namespace tandem {

// What `tandem up` would start: processes, ports and memory, as a table. INVALID_ARGUMENT,
// NOT_FOUND or RESOURCE_EXHAUSTED, with file and line, for what cannot work on this host: no such
// model, or more memory than there is.
absl::StatusOr<std::string> DescribeTopology(const Topology& topology);

}  // namespace tandem
