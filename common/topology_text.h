#pragma once

#include <string>

#include "common/topology.h"

namespace tandem {

// The topology as YAML that reads as the same topology again: every setting, also those that the file left to their
// defaults, with absolute paths. Secrets stand there as their files or variables.
std::string TopologyText(const Topology& topology);

}  // namespace tandem
