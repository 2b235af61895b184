#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/topology.h"

namespace tandem {

// What `tandem up` would start: processes, ports, memory, KV pages and the longest context, as a table. Asks the
// programs in `program_folder` themselves (--check), which open the model and count their KV pages; ports are not
// tried. INVALID_ARGUMENT: what a program refuses, with file and line. RESOURCE_EXHAUSTED: the processes need more
// memory than this host has. NOT_FOUND: a program is missing. UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL: one cannot be
// run, takes too long, or crashes.
absl::StatusOr<std::string> DescribeTopology(const Topology& topology, const std::string& program_folder);

// ALREADY_EXISTS, with the process and the address: a port that the topology fixes is in use on this machine.
absl::Status CheckPortsAreFree(const Topology& topology);

}  // namespace tandem
