#include "router/cluster_view.h"

#include <algorithm>

namespace tandem {

Incarnation ClusterView::Register(const WorkerRegistration& registration, absl::Time now) {
  Incarnation replaced;
  if (const WorkerView* old = FindByName(registration.worker_id);
      old != nullptr && old->registration.incarnation != registration.incarnation) {
    replaced = old->registration.incarnation;
  }
  WorkerView& view = workers_[registration.incarnation] = WorkerView();
  view.registration = registration;
  view.last_heard = view.last_progress = now;
  return replaced;
}

void ClusterView::OnHeartbeat(Incarnation worker, const WorkerHeartbeat& heartbeat, absl::Time now) {
  WorkerView* view = Find(worker);
  if (view == nullptr) return;
  if (heartbeat.sequence != view->heartbeat.sequence + 1) view->prefix_hashes.clear();
  for (uint64_t hash : heartbeat.dropped_hashes) view->prefix_hashes.erase(hash);
  view->prefix_hashes.insert(heartbeat.stored_hashes.begin(), heartbeat.stored_hashes.end());
  if (heartbeat.turns != view->heartbeat.turns) view->last_progress = now;
  view->heartbeat = heartbeat;
  view->heartbeat.stored_hashes.clear();
  view->heartbeat.dropped_hashes.clear();
  view->last_heard = now;
}

void ClusterView::SetSessionUp(Incarnation worker, bool up) {
  if (WorkerView* view = Find(worker); view != nullptr) view->session_up = up;
}

void ClusterView::Remove(Incarnation worker) { workers_.erase(worker); }

std::vector<Incarnation> ClusterView::Lost(absl::Time now, absl::Duration timeout, absl::Duration stuck_timeout) const {
  std::vector<Incarnation> lost;
  for (const auto& [incarnation, view] : workers_) {
    bool silent = now - view.last_heard > timeout;
    bool stuck = now - view.last_progress > stuck_timeout;
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
