#include "kvtransfer/page_checksum.h"

#include <xxhash.h>

#include <algorithm>

namespace tandem {

std::vector<uint32_t> PageChecksums(const uint8_t* base, PoolSide side, const KvLayout& source,
                                    SequencePages source_pages, const KvLayout& destination,
                                    SequencePages destination_pages, IndexRange tokens) {
  std::vector<uint32_t> checksums;
  XXH3_state_t* state = XXH3_createState();
  for (int begin = tokens.begin; begin < tokens.end;) {
    int end = std::min(tokens.end, (begin / destination.page_tokens + 1) * destination.page_tokens);
    XXH3_64bits_reset(state);
    for (const CopyRun& run :
         PlanTransfer(source, source_pages, destination, destination_pages, {begin, end}, {0, source.num_layers})) {
      XXH3_64bits_update(state, base + (side == PoolSide::kSource ? run.source : run.destination), run.bytes);
    }
    checksums.push_back(static_cast<uint32_t>(XXH3_64bits_digest(state)));
    begin = end;
  }
  XXH3_freeState(state);
  return checksums;
}

}  // namespace tandem
