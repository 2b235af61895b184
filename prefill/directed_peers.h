#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/worker_state.h"

namespace tandem {

// The decode workers that routers want links to: all that one of them names. A router that is lost counts no more where
// another one is there; where none is, links stay as they are.
//
// Thread-safety: not thread-safe; the worker's engine thread owns it, so that what is wanted is told in the order in
// which routers said it.
class DirectedPeers {
 public:
  // What one router wants from now on; returns what all want.
  std::vector<DirectedPeer> Set(const std::string& router, std::vector<DirectedPeer> peers);
  // Likewise, when the connection to a router has ended.
  std::vector<DirectedPeer> Lose(const std::string& router);

 private:
  struct Wish {
    std::vector<DirectedPeer> peers;
    bool is_lost = false;  // It was the last one.
  };
  std::vector<DirectedPeer> All() const;
  std::map<std::string, Wish> wishes_;  // By router.
};

}  // namespace tandem
