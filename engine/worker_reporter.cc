#include "engine/worker_reporter.h"

#include <utility>

namespace tandem {

WorkerHeartbeat WorkerReporter::Collect(const std::string& router, bool restart) {
  EngineStats stats = engine_.TakeStats();
  absl::MutexLock lock(&mu_);
  for (uint64_t hash : stats.prefix_changes.dropped) held_.erase(hash);
  for (uint64_t hash : stats.prefix_changes.stored) held_.insert(hash);
  for (auto& [name, feed] : feeds_) {
    feed.stored.insert(feed.stored.end(), stats.prefix_changes.stored.begin(), stats.prefix_changes.stored.end());
    feed.dropped.insert(feed.dropped.end(), stats.prefix_changes.dropped.begin(), stats.prefix_changes.dropped.end());
  }
  Feed& feed = feeds_[router];
  if (restart) {
    feed.stored.assign(held_.begin(), held_.end());
    feed.dropped.clear();
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
  for (const auto& [peer, link] : links_) heartbeat.links.push_back(link);
  heartbeat.stored_hashes = std::exchange(feed.stored, {});
  heartbeat.dropped_hashes = std::exchange(feed.dropped, {});
  heartbeat.sequence = ++feed.sequence;
  return heartbeat;
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

std::string WorkerReporter::state() const {
  absl::MutexLock lock(&mu_);
  return state_;
}

}  // namespace tandem
