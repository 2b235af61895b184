#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace tandem {

// States of docs/kv_protocol.md, section 3.
enum class PageState {
  kFree,
  kInUse,        // Belongs to one sequence or more.
  kGranted,      // Promised to a prefill worker, which may be writing to it.
  kCommitted,    // Written in full; not in a batch yet.
  kCached,       // In no sequence, but its content may be reused; taken back when pages run out.
  kQuarantined,  // A transfer ended badly: its writer may still write.
};
inline constexpr int kNumPageStates = 6;
absl::string_view PageStateName(PageState state);

// The pages of one rank's KV pool: who owns which, and which come next.
//
// The counts of all states always sum to the number of pages; every method keeps that.
//
// Thread-safety: not thread-safe; the engine thread owns it.
// Ownership: hands out page numbers only; the memory is the engine's.
class PagePool {
 public:
  explicit PagePool(int num_pages);

  // Takes `count` pages in `state` (kInUse or kGranted) with one reference each: free ones first,
  // then the cached ones that were released longest ago. The latter are appended to `evicted`, so
  // that the caller drops them from the prefix index. nullopt, and nothing taken, when there are
  // too few.
  std::optional<std::vector<PageIndex>> Allocate(int count, PageState state, std::vector<PageIndex>& evicted);
  // One more owner of an in-use or cached page.
  void AddReference(PageIndex page);
  // One owner less. With the last one the page becomes cached, if `keep_cached`, or free.
  void Release(PageIndex page, bool keep_cached);

  // Moves a page with an owner between kGranted, kCommitted, kInUse and kQuarantined.
  void SetState(PageIndex page, PageState state);

  PageState state(PageIndex page) const { return pages_[page].state; }
  int count(PageState state) const { return counts_[static_cast<int>(state)]; }
  // Pages that Allocate could hand out now.
  int available() const { return count(PageState::kFree) + count(PageState::kCached); }
  int num_pages() const { return static_cast<int>(pages_.size()); }

 private:
  struct Page {
    PageState state = PageState::kFree;
    int references = 0;
    std::list<PageIndex>::iterator cached_at;  // Valid while cached.
  };
  void Move(PageIndex page, PageState to);

  std::vector<Page> pages_;
  std::vector<PageIndex> free_;  // Most recently freed last: still warm.
  std::list<PageIndex> cached_;  // Least recently released first.
  std::array<int, kNumPageStates> counts_ = {};
};

}  // namespace tandem
