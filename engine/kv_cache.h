#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "common/ids.h"
#include "engine/page_pool.h"
#include "engine/prefix_index.h"

namespace tandem {

// The pool and the prefix index as one: allocation that evicts, release that keeps, prefixes that
// are found.
//
// Thread-safety: not thread-safe; the engine thread owns it.
// Ownership: page numbers only.
class KvCache {
 public:
  KvCache(int num_pages, int page_tokens) : page_tokens_(page_tokens), pool_(num_pages), index_(page_tokens) {}

  int page_tokens() const { return page_tokens_; }
  int PagesFor(int64_t tokens) const { return static_cast<int>((tokens + page_tokens_ - 1) / page_tokens_); }

  // As PagePool::Allocate; pages taken from the cache leave the index.
  std::optional<std::vector<PageIndex>> Allocate(int count, PageState state = PageState::kInUse);
  // The pages that hold the longest known prefix of `tokens`, each with one reference for the
  // caller. Never all of the tokens: at least one is left to compute, since its logits are wanted.
  std::vector<PageIndex> AcquirePrefix(absl::Span<const TokenId> tokens);
  // How many pages AcquirePrefix would return, and how many of them are only cached.
  struct PrefixSize {
    int pages = 0;
    int cached = 0;
  };
  PrefixSize FindPrefix(absl::Span<const TokenId> tokens) const;
  // Makes the full pages of computed tokens findable, from `first_page` on; those before it are. `chain`: hash of the
  // page before it, or 0 when that is not known. Returns the hash of the last full page.
  uint64_t Publish(absl::Span<const TokenId> computed_tokens, absl::Span<const PageIndex> pages, int first_page = 0,
                   uint64_t chain = 0);
  // Gives back pages, the last ones first, so that of a long prefix its end is evicted first.
  void Release(absl::Span<const PageIndex> pages);

  PagePool& pool() { return pool_; }
  const PagePool& pool() const { return pool_; }
  PrefixIndex& index() { return index_; }

 private:
  std::vector<PageIndex> Match(absl::Span<const TokenId> tokens) const;
  const int page_tokens_;
  PagePool pool_;
  PrefixIndex index_;
};

}  // namespace tandem
