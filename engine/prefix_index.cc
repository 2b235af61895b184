#include "engine/prefix_index.h"

#include <algorithm>
#include <utility>

namespace tandem {

std::vector<PageIndex> PrefixIndex::Match(absl::Span<const uint64_t> hashes, absl::Span<const TokenId> tokens) const {
  std::vector<PageIndex> pages;
  for (size_t i = 0; i < hashes.size(); ++i) {
    auto entry = entries_.find(hashes[i]);
    if (entry == entries_.end()) break;
    absl::Span<const TokenId> own = tokens.subspan(i * page_tokens_, page_tokens_);
    if (!std::equal(own.begin(), own.end(), entry->second.tokens.begin(), entry->second.tokens.end())) break;
    pages.push_back(entry->second.page);
  }
  return pages;
}

bool PrefixIndex::Insert(uint64_t hash, absl::Span<const TokenId> page_tokens, PageIndex page) {
  if (auto held = entries_.find(hash); held != entries_.end()) return held->second.page == page;
  entries_.emplace(hash, Entry{page, std::vector<TokenId>(page_tokens.begin(), page_tokens.end())});
  hashes_by_page_[page] = hash;
  changes_[hash] = true;
  return true;
}

void PrefixIndex::Remove(PageIndex page) {
  auto entry = hashes_by_page_.find(page);
  if (entry == hashes_by_page_.end()) return;
  changes_[entry->second] = false;
  entries_.erase(entry->second);
  hashes_by_page_.erase(entry);
}

PrefixIndex::Changes PrefixIndex::TakeChanges() { return std::exchange(changes_, {}); }

}  // namespace tandem
