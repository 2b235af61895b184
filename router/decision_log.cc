#include "router/decision_log.h"

#include <utility>

namespace tandem {
namespace {

constexpr size_t kMaxDecisions = 64;  // Of one request.

}  // namespace

void DecisionLog::Add(const std::string& request, absl::Time at, std::string what) {
  auto [entry, is_new] = decisions_.try_emplace(request);
  std::vector<Decision>& list = entry->second;
  if (list.empty() || list.back().what != what) list.push_back({at, std::move(what)});
  if (list.size() > kMaxDecisions) list.erase(list.begin());
  if (!is_new) return;
  order_.push_back(request);
  if (order_.size() > max_requests_) {
    decisions_.erase(order_.front());
    order_.pop_front();
  }
}

std::vector<Decision> DecisionLog::Find(const std::string& request) const {
  auto entry = decisions_.find(request);
  return entry == decisions_.end() ? std::vector<Decision>() : entry->second;
}

}  // namespace tandem
