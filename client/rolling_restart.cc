#include "client/rolling_restart.h"

#include <algorithm>
#include <set>
#include <vector>

#include "absl/functional/function_ref.h"
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

int64_t OthersOfOtherRole(const ClusterSummary& cluster, const WorkerSummary& worker) {
  return std::count_if(cluster.workers.begin(), cluster.workers.end(),
                       [&](const WorkerSummary& one) { return one.role != worker.role; });
}

// One worker, as it is now: others may have restarted or left meanwhile.
class OneRestart {
 public:
  OneRestart(const std::string& worker, absl::Duration patience, const Clock& clock, RollingRestartActions& actions)
      : worker_(worker), patience_(patience), clock_(clock), actions_(actions), begin_(clock.Now()) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(const ClusterSummary before, AwaitCluster());
    const WorkerSummary* old = Find(before, worker_);
    if (old == nullptr) return absl::FailedPreconditionError(absl::StrCat(worker_, " is not registered any more"));
    if (old->state != "ready") return absl::FailedPreconditionError(absl::StrCat(worker_, " is ", old->state));
    RETURN_IF_ERROR(AwaitAnswer([&] { return actions_.Restart(worker_); }));
    actions_.Tell(absl::StrCat(worker_, " finishes what it has and starts again"));
    begin_ = clock_.Now();
    while (clock_.Now() - begin_ < patience_) {
      if (const auto cluster = actions_.Status(); cluster.ok() && IsBack(*cluster, *old, LinksOf(before, worker_))) {
        actions_.Tell(absl::StrCat(worker_, " is back after ",
                                   absl::FormatDuration(absl::Ceil(clock_.Now() - begin_, absl::Milliseconds(100)))));
        return absl::OkStatus();
      }
      actions_.Sleep(kBetweenLooks);
    }
    return absl::DeadlineExceededError(
        absl::StrCat(worker_, " is not back, ready and linked as before, after ", absl::FormatDuration(patience_)));
  }

 private:
  // What it ends in, unless that is that no router answers: one may do so later.
  absl::Status AwaitAnswer(absl::FunctionRef<absl::Status()> call) {
    absl::Status status = call();
    while (absl::IsUnavailable(status) && clock_.Now() - begin_ < patience_) {
      actions_.Sleep(kBetweenLooks);
      status = call();
    }
    return status;
  }
  absl::StatusOr<ClusterSummary> AwaitCluster() {
    absl::StatusOr<ClusterSummary> cluster = absl::UnknownError("not asked");
    RETURN_IF_ERROR(AwaitAnswer([&] {
      cluster = actions_.Status();
      return cluster.status();
    }));
    return cluster;
  }
  // As many links as before, or as there can be now.
  bool IsBack(const ClusterSummary& cluster, const WorkerSummary& old, int64_t links) const {
    const WorkerSummary* now = Find(cluster, worker_);
    return now != nullptr && now->incarnation != old.incarnation && now->state == "ready" &&
           LinksOf(cluster, worker_) >= std::min(links, OthersOfOtherRole(cluster, *now));
  }

  const std::string worker_;
  const absl::Duration patience_;
  const Clock& clock_;
  RollingRestartActions& actions_;
  absl::Time begin_;
};

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
    return absl::NotFoundError(absl::StrCat("no worker of a pool ", pool, " is registered; pools that have some: ",
                                            pools.empty() ? "none" : absl::StrJoin(pools, ", ")));
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
  if (is_only) {
    actions.Tell(absl::StrCat("there is no other ", workers[0].role,
                              " worker: requests that wait longer for it than router.placement_timeout fail"));
  }
  for (size_t i = 0; i < workers.size(); ++i) {
    const absl::Status status = OneRestart(workers[i].worker_id, patience, clock, actions).Run();
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
