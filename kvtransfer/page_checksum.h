#pragma once

#include <cstdint>
#include <vector>

#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Checksums of what one transfer wrote: one per destination page, the low 32 bits of XXH3-64 over
// the written bytes in plan order. The sender computes them from its pool, the receiver from its
// own.
//
// `base` is the start of the pool that `side` says. Source pages of the receiver's plan are
// placeholders: only their number matters.
enum class PoolSide { kSource, kDestination };
std::vector<uint32_t> PageChecksums(const uint8_t* base, PoolSide side, const KvLayout& source,
                                    SequencePages source_pages, const KvLayout& destination,
                                    SequencePages destination_pages, IndexRange tokens);

}  // namespace tandem
