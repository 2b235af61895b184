#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/router_client.h"
#include "common/clock.h"

namespace tandem {

// What a rolling restart does to the world; RouterClient behind the command line.
//
// Thread-safety: not thread-safe.
class RollingRestartActions {
 public:
  virtual ~RollingRestartActions() = default;
  virtual absl::StatusOr<ClusterSummary> Status() = 0;
  // Lets a worker finish what it has and start again.
  virtual absl::Status Restart(const std::string& worker) = 0;
  virtual void Sleep(absl::Duration duration) = 0;
  // A line for whoever watches.
  virtual void Tell(const std::string& line) = 0;
};

// Restarts the workers of a pool one after the other: the next one when the last one is ready again and has as many
// links as before, or as it can have now. Requests go on meanwhile on the others; where it is the only one of its role,
// they wait for it as long as the router lets them. A router that does not answer is waited for.
//
// NOT_FOUND, with the pools there are: no worker of it is registered. FAILED_PRECONDITION: one of them is not ready
// when its turn comes; of the first look nothing was begun. DEADLINE_EXCEEDED: one is not back within `patience`; names
// those that were not restarted.
absl::Status RestartPool(const std::string& pool, absl::Duration patience, const Clock& clock,
                         RollingRestartActions& actions);

}  // namespace tandem
