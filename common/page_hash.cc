#include "common/page_hash.h"

#include <xxhash.h>

namespace tandem {

std::vector<uint64_t> ChainedPageHashes(absl::Span<const TokenId> tokens, int page_tokens) {
  std::vector<uint64_t> hashes;
  hashes.reserve(tokens.size() / page_tokens);
  uint64_t parent = 0;
  for (size_t begin = 0; begin + page_tokens <= tokens.size(); begin += page_tokens) {
    parent = XXH3_64bits_withSeed(tokens.data() + begin, page_tokens * sizeof(TokenId), parent + 1);
    hashes.push_back(parent);
  }
  return hashes;
}

}  // namespace tandem
