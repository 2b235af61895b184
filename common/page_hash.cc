#include "common/page_hash.h"

#include <xxhash.h>

namespace tandem {

uint64_t NextPageHash(uint64_t parent, absl::Span<const TokenId> page_tokens) {
  return XXH3_64bits_withSeed(page_tokens.data(), page_tokens.size() * sizeof(TokenId), parent + 1);
}

std::vector<uint64_t> ChainedPageHashes(absl::Span<const TokenId> tokens, int page_tokens) {
  std::vector<uint64_t> hashes;
  hashes.reserve(tokens.size() / page_tokens);
  uint64_t parent = 0;
  for (size_t begin = 0; begin + page_tokens <= tokens.size(); begin += page_tokens) {
    parent = NextPageHash(parent, tokens.subspan(begin, page_tokens));
    hashes.push_back(parent);
  }
  return hashes;
}

}  // namespace tandem
