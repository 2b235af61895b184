#include "client/rolling_restart.h"

#include <algorithm>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

constexpr absl::Duration kBetweenLooks = absl::Milliseconds(100);

// Of a worker's name, "decode" of "decode-12".
std::string PoolOf(const std::string& worker) { return worker.substr(0, worker.rfind('-')); }

int NumberOf(const std::string& worker) {
  int number = 0;
  return absl::SimpleAtoi(worker.substr(worker.rfind('-') + 1), &number) ? number : 0;
}

const WorkerSummary* Find(const ClusterSummary& cluster, const std::string& worker) {
  const auto found = std::find_if(cluster.workers.begin(), cluster.workers.end(),
                                  [&](const WorkerSummary& one) { return one.worker_id == worker; });
  return found == cluster.workers.end() ? nullptr : &*found;
}

int64_t LinksOf(const ClusterSummary& cluster, const std::string& worker) {
  return std::count_if(cluster.links.begin(), cluster.links.end(), [&](const LinkSummary& link) {
    return link.up && (link.prefill_worker == worker || link.decode_worker == worker);
  });
}

absl::Status RestartOne(const WorkerSummary& old, int64_t links, absl::Duration patience, const Clock& clock,
                        RollingRestartActions& actions) {
  RETURN_IF_ERROR(actions.Restart(old.worker_id));
  actions.Tell(absl::StrCat(old.worker_id, " finishes what it has and starts again"));
  const absl::Time begin = clock.Now();
  while (clock.Now() - begin < patience) {
    // A router that does not answer now may do so later.
    if (const absl::StatusOr<ClusterSummary> cluster = actions.Status(); cluster.ok()) {
      const WorkerSummary* now = Find(*cluster, old.worker_id);
      if (now != nullptr && now->incarnation != old.incarnation && now->state == "ready" &&
          LinksOf(*cluster, old.worker_id) >= links) {
        actions.Tell(absl::StrCat(old.worker_id, " is back after ",
                                  absl::FormatDuration(absl::Trunc(clock.Now() - begin, absl::Milliseconds(100)))));
        return absl::OkStatus();
      }
    }
    actions.Sleep(kBetweenLooks);
  }
  return absl::DeadlineExceededError(
      absl::StrCat(old.worker_id, " is not back, ready and linked as before, after ", absl::FormatDuration(patience)));
}

}  // namespace

absl::Status RestartPool(const std::string& pool, absl::Duration patience, const Clock& clock,
                         RollingRestartActions& actions) {
  ASSIGN_OR_RETURN(const ClusterSummary cluster, actions.Status());
  std::vector<WorkerSummary> workers;
  std::set<std::string> pools;
  for (const WorkerSummary& worker : cluster.workers) {
    pools.insert(PoolOf(worker.worker_id));
    if (PoolOf(worker.worker_id) == pool) workers.push_back(worker);
  }
  if (workers.empty()) {
    return absl::NotFoundError(absl::StrCat("no worker of a pool ", pool, " is registered; there ",
                                            pools.empty() ? "are none" : "is ", absl::StrJoin(pools, ", ")));
  }
  std::sort(workers.begin(), workers.end(), [](const WorkerSummary& a, const WorkerSummary& b) {
    return NumberOf(a.worker_id) < NumberOf(b.worker_id);
  });
  for (const WorkerSummary& worker : workers) {
    if (worker.state == "ready") continue;
    return absl::FailedPreconditionError(
        absl::StrCat(worker.worker_id, " is ", worker.state, ", not ready: nothing was restarted"));
  }
  const bool is_only = std::count_if(cluster.workers.begin(), cluster.workers.end(), [&](const WorkerSummary& one) {
                         return one.role == workers[0].role && one.state == "ready";
                       }) == 1;
  if (is_only) actions.Tell(absl::StrCat("there is no other ", workers[0].role, " worker: requests wait for it"));
  for (size_t i = 0; i < workers.size(); ++i) {
    const absl::Status status =
        RestartOne(workers[i], LinksOf(cluster, workers[i].worker_id), patience, clock, actions);
    if (status.ok()) continue;
    std::vector<std::string> left;
    for (size_t k = i + 1; k < workers.size(); ++k) left.push_back(workers[k].worker_id);
    return absl::Status(
        status.code(),
        absl::StrCat(status.message(), left.empty() ? "" : "; not restarted: ", absl::StrJoin(left, ", ")));
  }
  return absl::OkStatus();
}

}  // namespace tandem
