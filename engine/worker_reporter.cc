#include "engine/worker_reporter.h"

#include <utility>

namespace tandem {

WorkerHeartbeat WorkerReporter::Collect(const std::string& router, bool restart) {
  EngineStats stats = engine_.TakeStats();
  absl::MutexLock lock(&mu_);
  for (const auto& [hash, held] : stats.prefix_changes) {
    held ? static_cast<void>(held_.insert(hash)) : static_cast<void>(held_.erase(hash));
    for (auto& [name, feed] : feeds_) feed.changes[hash] = held;
  }
  Feed& feed = feeds_[router];
  if (std::exchange(feed.tells_all, false) || restart) {
    feed.changes.clear();
    for (uint64_t hash : held_) feed.changes[hash] = true;
    feed.sequence = 0;
  }
  WorkerHeartbeat heartbeat;
  heartbeat.running_requests = stats.running + stats.held;
  heartbeat.waiting_requests = stats.waiting;
  heartbeat.queued_prompt_tokens = stats.waiting_tokens;
  heartbeat.free_pages = stats.free_pages;
  heartbeat.pages = std::move(stats.pages);
  heartbeat.state = state_;
  heartbeat.turns = stats.turns;
  heartbeat.preemptions = stats.preemptions;
  for (const auto& [peer, link] : links_) heartbeat.links.push_back(link);
  for (const auto& [hash, held] : feed.changes) {
    (held ? heartbeat.stored_hashes : heartbeat.dropped_hashes).push_back(hash);
  }
  feed.changes.clear();
  heartbeat.sequence = ++feed.sequence;
  return heartbeat;
}

void WorkerReporter::TellAllAgain(const std::string& router) {
  absl::MutexLock lock(&mu_);
  feeds_[router].tells_all = true;
}

void WorkerReporter::Forget(const std::string& router) {
  absl::MutexLock lock(&mu_);
  feeds_.erase(router);
}

void WorkerReporter::SetLink(const LinkReport& link) {
  absl::MutexLock lock(&mu_);
  // Only the newest life of a worker counts.
  absl::erase_if(links_, [&](const auto& entry) {
    return entry.second.peer_worker == link.peer_worker && entry.first != link.peer;
  });
  links_[link.peer] = link;
}

void WorkerReporter::SetState(const std::string& state) {
  absl::MutexLock lock(&mu_);
  state_ = state;
}

}  // namespace tandem
