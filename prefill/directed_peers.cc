#include "prefill/directed_peers.h"

#include <utility>

#include "absl/container/flat_hash_set.h"

namespace tandem {

std::vector<DirectedPeer> DirectedPeers::Set(const std::string& router, std::vector<DirectedPeer> peers) {
  std::erase_if(wishes_, [](const auto& entry) { return entry.second.is_lost; });
  wishes_[router] = {std::move(peers)};
  return All();
}

std::vector<DirectedPeer> DirectedPeers::Lose(const std::string& router) {
  auto wish = wishes_.find(router);
  if (wish == wishes_.end()) return All();
  if (wishes_.size() > 1) {
    wishes_.erase(wish);
  } else {
    wish->second.is_lost = true;
  }
  return All();
}

std::vector<DirectedPeer> DirectedPeers::All() const {
  std::vector<DirectedPeer> all;
  absl::flat_hash_set<Incarnation> known;
  for (const auto& [router, wish] : wishes_) {
    for (const DirectedPeer& peer : wish.peers) {
      if (known.insert(peer.incarnation).second) all.push_back(peer);
    }
  }
  return all;
}

}  // namespace tandem
