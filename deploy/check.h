#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/topology.h"

namespace tandem {

// What `tandem up` would start: processes, ports, memory and KV pages, as a table. Asks the programs in
// `program_folder` themselves (--check), so what they would refuse at their start is refused here, with file and line:
// a model that cannot be opened, KV memory that holds no page. RESOURCE_EXHAUSTED when the processes need more memory
// than this host has; NOT_FOUND for a missing program.
absl::StatusOr<std::string> DescribeTopology(const Topology& topology, const std::string& program_folder);

}  // namespace tandem
