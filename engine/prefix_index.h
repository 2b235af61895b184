#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace tandem {

// Which full pages of KV a worker holds, by the tokens that they and everything before them stand
// for.
//
// Hashes are those of ChainedPageHashes, which cover all tokens before a page; a hit counts only if the page's own
// tokens are equal, too. Two prompts are mixed up only if two of their 64-bit hashes collide and the colliding pages
// hold the same tokens.
//
// Thread-safety: not thread-safe; the engine thread owns it.
class PrefixIndex {
 public:
  explicit PrefixIndex(int page_tokens) : page_tokens_(page_tokens) {}

  // The pages of the longest prefix of `tokens` that is held; `hashes` are the tokens' page hashes.
  std::vector<PageIndex> Match(absl::Span<const uint64_t> hashes, absl::Span<const TokenId> tokens) const;
  // Records a page. False when its hash is held already, by another page: then that one stays.
  bool Insert(uint64_t hash, absl::Span<const TokenId> page_tokens, PageIndex page);
  // Forgets a page; nothing when it is not held.
  void Remove(PageIndex page);
  bool Holds(PageIndex page) const { return hashes_by_page_.contains(page); }
  int size() const { return static_cast<int>(entries_.size()); }

  // Hashes that were stored or dropped since the last call, with whether they are held now: for the router's view.
  using Changes = absl::flat_hash_map<uint64_t, bool>;
  Changes TakeChanges();

 private:
  struct Entry {
    PageIndex page;
    std::vector<TokenId> tokens;
  };
  const int page_tokens_;
  absl::flat_hash_map<uint64_t, Entry> entries_;
  absl::flat_hash_map<PageIndex, uint64_t> hashes_by_page_;
  Changes changes_;
};

}  // namespace tandem
