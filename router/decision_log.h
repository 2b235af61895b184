#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace tandem {

struct Decision {
  absl::Time at;
  std::string what;
};

// Why the latest requests went where they went, for `tandem explain`.
//
// Thread-safety: not thread-safe; the router's owner thread owns it.
class DecisionLog {
 public:
  explicit DecisionLog(size_t max_requests = 4096) : max_requests_(max_requests) {}

  // A repetition of a request's last decision is left out, and so are the oldest of very many: names can be used again.
  void Add(const std::string& request, absl::Time at, std::string what);
  // Oldest first; empty for requests that are not known any more, or never were.
  std::vector<Decision> Find(const std::string& request) const;

 private:
  const size_t max_requests_;
  absl::flat_hash_map<std::string, std::vector<Decision>> decisions_;
  std::deque<std::string> order_;  // Requests, oldest first.
};

}  // namespace tandem
