#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/router_client.h"
#include "common/clock.h"

namespace tandem {

// What a rolling restart does to the world; RouterClient behind the command line.
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
// links as before. Requests go on meanwhile, on the others or, where it is the only one of its role, after it.
//
// NOT_FOUND, with the pools there are: no worker of it is registered. FAILED_PRECONDITION: one of them is not ready, so
// that nothing was begun. DEADLINE_EXCEEDED: one is not back within `patience`; names those that were not restarted.
absl::Status RestartPool(const std::string& pool, absl::Duration patience, const Clock& clock,
                         RollingRestartActions& actions);

}  // namespace tandem
