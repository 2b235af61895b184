#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/worker_state.h"

namespace tandem {

// The decode workers that routers want links to: all that one of them names. A router that is lost counts no more where
// another one is there; where none is, links stay as they are.
//
// Thread-safety: thread-safe.
class DirectedPeers {
 public:
  // What one router wants from now on; returns what all want.
  std::vector<DirectedPeer> Set(const std::string& router, std::vector<DirectedPeer> peers) ABSL_LOCKS_EXCLUDED(mu_);
  // Likewise, when the connection to a router has ended.
  std::vector<DirectedPeer> Lose(const std::string& router) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Wish {
    std::vector<DirectedPeer> peers;
    bool is_lost = false;  // It was the last one.
  };
  std::vector<DirectedPeer> All() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Mutex mu_;
  std::map<std::string, Wish> wishes_ ABSL_GUARDED_BY(mu_);  // By router.
};

}  // namespace tandem
