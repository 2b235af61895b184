#pragma once

#include "absl/status/status.h"
#include "common/topology.h"

namespace tandem {

// A decode worker's rank that is not its first: computes what rank 0 plans, and returns when that has ended. It has no
// addresses and is known to nobody else. SIGTERM and SIGINT end it at once while it waits for rank 0, and later not at
// all: rank 0 is told, too, and still needs it to drain.
//
// Errors: as of DecodeProcess::Start and RankGroup::Join. Ends the process when rank 0 is lost (RankGroup::EndProcess).
absl::Status RunRankProcess(const Topology& topology, const ProcessPlan& plan);

}  // namespace tandem
