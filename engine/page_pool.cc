#include "engine/page_pool.h"

#include <cassert>

namespace tandem {

absl::string_view PageStateName(PageState state) {
  switch (state) {
    case PageState::kFree:
      return "free";
    case PageState::kInUse:
      return "in_use";
    case PageState::kGranted:
      return "granted";
    case PageState::kCommitted:
      return "committed";
    case PageState::kCached:
      return "cached";
    case PageState::kQuarantined:
      return "quarantined";
  }
  return "";
}

PagePool::PagePool(int num_pages) : pages_(num_pages) {
  counts_[static_cast<int>(PageState::kFree)] = num_pages;
  for (PageIndex page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

void PagePool::Move(PageIndex page, PageState to) {
  Page& entry = pages_[page];
  if (entry.state == PageState::kCached) cached_.erase(entry.cached_at);
  --counts_[static_cast<int>(entry.state)];
  ++counts_[static_cast<int>(to)];
  entry.state = to;
  if (to == PageState::kFree) free_.push_back(page);
  if (to == PageState::kCached) entry.cached_at = cached_.insert(cached_.end(), page);
}

std::optional<std::vector<PageIndex>> PagePool::Allocate(int count, PageState state, std::vector<PageIndex>& evicted) {
  if (count > available()) return std::nullopt;
  std::vector<PageIndex> taken;
  taken.reserve(count);
  while (taken.size() < count) {
    if (free_.empty()) {
      evicted.push_back(cached_.front());
      Move(cached_.front(), PageState::kFree);
    }
    PageIndex page = free_.back();
    free_.pop_back();
    Move(page, state);
    pages_[page].references = 1;
    taken.push_back(page);
  }
  return taken;
}

void PagePool::AddReference(PageIndex page) {
  if (pages_[page].state == PageState::kCached) Move(page, PageState::kInUse);
  ++pages_[page].references;
}

void PagePool::Release(PageIndex page, bool keep_cached) {
  assert(pages_[page].references > 0);
  if (--pages_[page].references > 0) return;
  Move(page, keep_cached ? PageState::kCached : PageState::kFree);
}

void PagePool::SetState(PageIndex page, PageState state) {
  assert(pages_[page].references > 0);
  if (pages_[page].state != state) Move(page, state);
}

}  // namespace tandem
