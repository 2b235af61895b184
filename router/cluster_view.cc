#include "router/cluster_view.h"

#include <algorithm>

#include "common/page_hash.h"

namespace tandem {

int ClusterView::MaxContextTokens() const {
  std::map<Role, int> longest;
  for (const auto& [incarnation, worker] : workers_) {
    int& of_role = longest[worker.registration.role];
    of_role = std::max(of_role, worker.registration.max_context_tokens);
  }
  int least = 0;
  for (const auto& [role, tokens] : longest) least = least == 0 ? tokens : std::min(least, tokens);
  return least;
}

Incarnation ClusterView::Register(const WorkerRegistration& registration, absl::Time now) {
  Incarnation replaced;
  if (const WorkerView* old = FindByName(registration.worker_id);
      old != nullptr && old->registration.incarnation != registration.incarnation) {
    replaced = old->registration.incarnation;
  }
  Remove(registration.incarnation);
  standing_.erase(replaced);
  WorkerView& view = workers_[registration.incarnation];
  view.registration = registration;
  if (auto standing = standing_.find(registration.incarnation); standing != standing_.end()) {
    view.stands_at_turn = standing->second;
  }
  view.last_heard = view.last_progress = now;
  return replaced;
}

bool ClusterView::OnHeartbeat(Incarnation worker, const WorkerHeartbeat& heartbeat, absl::Time now) {
  WorkerView* view = Find(worker);
  if (view == nullptr) return true;
  const bool follows = heartbeat.sequence == view->heartbeat.sequence + 1;
  if (!follows) ForgetPrefixes(*view);
  for (uint64_t hash : heartbeat.dropped_hashes) {
    if (view->prefix_hashes.erase(hash) > 0) ForgetPrefix(hash, worker);
  }
  for (uint64_t hash : heartbeat.stored_hashes) {
    if (view->prefix_hashes.insert(hash).second) holders_[hash].push_back(worker);
  }
  if (heartbeat.turns != view->heartbeat.turns) view->last_progress = now;
  if (view->stands_at_turn.has_value() && heartbeat.turns != *view->stands_at_turn) {
    view->stands_at_turn.reset();
    standing_.erase(worker);
  }
  view->heartbeat = heartbeat;
  view->heartbeat.stored_hashes.clear();
  view->heartbeat.dropped_hashes.clear();
  view->last_heard = now;
  return follows || heartbeat.sequence == 1;
}

void ClusterView::SetSessionUp(Incarnation worker, bool up) {
  if (WorkerView* view = Find(worker); view != nullptr) view->session_up = up;
}

void ClusterView::Remove(Incarnation worker) {
  auto view = workers_.find(worker);
  if (view == workers_.end()) return;
  ForgetPrefixes(view->second);
  workers_.erase(view);
}

void ClusterView::ForgetPrefixes(WorkerView& view) {
  for (uint64_t hash : view.prefix_hashes) ForgetPrefix(hash, view.registration.incarnation);
  view.prefix_hashes.clear();
}

void ClusterView::ForgetPrefix(uint64_t hash, Incarnation worker) {
  auto holders = holders_.find(hash);
  if (holders == holders_.end()) return;
  auto& list = holders->second;
  list.erase(std::remove(list.begin(), list.end(), worker), list.end());
  if (list.empty()) holders_.erase(holders);
}

absl::flat_hash_map<Incarnation, int> ClusterView::PrefixHits(absl::Span<const TokenId> tokens) const {
  absl::flat_hash_map<Incarnation, int> hits;
  absl::InlinedVector<int, 2> page_sizes;
  for (const auto& [incarnation, view] : workers_) {
    const int size = view.registration.page_tokens;
    if (std::find(page_sizes.begin(), page_sizes.end(), size) == page_sizes.end()) page_sizes.push_back(size);
  }
  for (const int page_tokens : page_sizes) {
    uint64_t hash = 0;
    bool goes_on = true;
    for (int begin = 0; goes_on && begin + page_tokens <= static_cast<int>(tokens.size()); begin += page_tokens) {
      hash = NextPageHash(hash, tokens.subspan(begin, page_tokens));
      auto holders = holders_.find(hash);
      goes_on = false;
      if (holders == holders_.end()) break;
      for (Incarnation worker : holders->second) {
        if (Find(worker)->registration.page_tokens != page_tokens) continue;
        auto hit = begin == 0 ? hits.try_emplace(worker, 0).first : hits.find(worker);
        if (hit == hits.end() || hit->second != begin) continue;  // It has dropped an earlier page.
        hit->second += page_tokens;
        goes_on = true;
      }
    }
  }
  return hits;
}

std::vector<Incarnation> ClusterView::Lost(absl::Time now, absl::Duration timeout, absl::Duration stuck_timeout) {
  std::vector<Incarnation> lost;
  for (const auto& [incarnation, view] : workers_) {
    bool silent = now - view.last_heard > timeout;
    bool stuck = now - view.last_progress > stuck_timeout;
    if (stuck) standing_[incarnation] = view.heartbeat.turns;
    if (silent || stuck) lost.push_back(incarnation);
  }
  return lost;
}

WorkerView* ClusterView::Find(Incarnation worker) {
  auto entry = workers_.find(worker);
  return entry == workers_.end() ? nullptr : &entry->second;
}

const WorkerView* ClusterView::Find(Incarnation worker) const {
  auto entry = workers_.find(worker);
  return entry == workers_.end() ? nullptr : &entry->second;
}

const WorkerView* ClusterView::FindByName(const std::string& worker_id) const {
  for (const auto& [incarnation, view] : workers_) {
    if (view.registration.worker_id == worker_id) return &view;
  }
  return nullptr;
}

bool ClusterView::LinkUp(Incarnation prefill, Incarnation decode) const {
  const WorkerView* view = Find(prefill);
  return view != nullptr && std::any_of(view->heartbeat.links.begin(), view->heartbeat.links.end(),
                                        [&](const LinkReport& link) { return link.peer == decode && link.up; });
}

void ClusterView::SetLinkDown(Incarnation prefill, Incarnation decode) {
  WorkerView* view = Find(prefill);
  if (view == nullptr) return;
  for (LinkReport& link : view->heartbeat.links) link.up = link.up && link.peer != decode;
}

bool ClusterView::HasRole(Role role) const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [&](const auto& entry) { return entry.second.registration.role == role; });
}

std::vector<DirectedPeer> ClusterView::DecodePeers() const {
  std::vector<DirectedPeer> peers;
  for (const auto& [incarnation, view] : workers_) {
    if (view.registration.role != Role::kDecode) continue;
    peers.push_back({view.registration.worker_id, incarnation, view.registration.link_address});
  }
  return peers;
}

bool ClusterView::Ready(bool split) const {
  for (const auto& [decode, view] : workers_) {
    if (view.registration.role != Role::kDecode || !view.AcceptsWork()) continue;
    if (!split) return true;
    for (const auto& [prefill, other] : workers_) {
      if (other.registration.role == Role::kPrefill && other.AcceptsWork() && LinkUp(prefill, decode)) return true;
    }
  }
  return false;
}

}  // namespace tandem
