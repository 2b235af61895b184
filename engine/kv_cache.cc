#include "engine/kv_cache.h"

#include <algorithm>

#include "common/page_hash.h"

namespace tandem {

std::optional<std::vector<PageIndex>> KvCache::Allocate(int count, PageState state) {
  std::vector<PageIndex> evicted;
  std::optional<std::vector<PageIndex>> pages = pool_.Allocate(count, state, evicted);
  for (PageIndex page : evicted) index_.Remove(page);
  return pages;
}

std::vector<PageIndex> KvCache::Match(absl::Span<const TokenId> tokens) const {
  if (tokens.empty()) return {};
  // Without the last token: it must be computed.
  return index_.Match(ChainedPageHashes(tokens.subspan(0, tokens.size() - 1), page_tokens_), tokens);
}

std::vector<PageIndex> KvCache::AcquirePrefix(absl::Span<const TokenId> tokens) {
  std::vector<PageIndex> pages = Match(tokens);
  for (PageIndex page : pages) pool_.AddReference(page);
  return pages;
}

KvCache::PrefixSize KvCache::FindPrefix(absl::Span<const TokenId> tokens) const {
  PrefixSize size;
  for (PageIndex page : Match(tokens)) {
    ++size.pages;
    size.cached += pool_.state(page) == PageState::kCached;
  }
  return size;
}

uint64_t KvCache::Publish(absl::Span<const TokenId> computed_tokens, absl::Span<const PageIndex> pages, int first_page,
                          uint64_t chain) {
  const int full_pages = static_cast<int>(computed_tokens.size()) / page_tokens_;
  for (int i = chain == 0 ? 0 : first_page; i < full_pages; ++i) {
    absl::Span<const TokenId> tokens = computed_tokens.subspan(i * page_tokens_, page_tokens_);
    chain = NextPageHash(chain, tokens);
    if (i >= first_page) index_.Insert(chain, tokens, pages[i]);
  }
  return chain;
}

void KvCache::Release(absl::Span<const PageIndex> pages) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) pool_.Release(*page, index_.Holds(*page));
}

}  // namespace tandem
