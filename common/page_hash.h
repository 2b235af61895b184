#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/ids.h"

namespace tandem {

// The hash of a full page whose predecessor has hash `parent`; 0 for the first page.
uint64_t NextPageHash(uint64_t parent, absl::Span<const TokenId> page_tokens);

// Chained hashes of the full pages of a prompt: entry i covers tokens [0, (i + 1) * page_tokens),
// so equal hashes mean equal prefixes up to collisions, which whoever reuses KV rules out by
// comparing tokens. Partial last pages have no hash.
std::vector<uint64_t> ChainedPageHashes(absl::Span<const TokenId> tokens, int page_tokens);

}  // namespace tandem
