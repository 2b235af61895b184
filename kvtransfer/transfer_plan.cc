#include "kvtransfer/transfer_plan.h"

#include <algorithm>

namespace tandem {
namespace {

// The heads that `source` sends to `destination`, in the model's numbering. Replicas share the
// work: the destination rank's number chooses among those that hold what it needs.
IndexRange HeadsToSend(const KvLayout& source, const KvLayout& destination) {
  IndexRange heads{
      std::max(source.first_head(), destination.first_head()),
      std::min(source.first_head() + source.own_heads(), destination.first_head() + destination.own_heads())};
  if (heads.empty()) return {};
  int my_replica = source.tp_rank % source.replicas();
  if (destination.tp_rank % source.replicas() != my_replica) return {};
  return heads;
}

void Append(std::vector<CopyRun>& runs, const CopyRun& run) {
  if (!runs.empty()) {
    CopyRun& last = runs.back();
    if (last.source + last.bytes == run.source && last.destination + last.bytes == run.destination) {
      last.bytes += run.bytes;
      return;
    }
  }
  runs.push_back(run);
}

}  // namespace

std::vector<CopyRun> PlanTransfer(const KvLayout& source, SequencePages source_pages, const KvLayout& destination,
                                  SequencePages destination_pages, IndexRange tokens, IndexRange layers) {
  std::vector<CopyRun> runs;
  IndexRange heads = HeadsToSend(source, destination);
  if (heads.empty() || tokens.empty() || layers.empty()) return runs;
  for (int page_begin = tokens.begin; page_begin < tokens.end;) {
    int page = page_begin / destination.page_tokens;
    int page_end = std::min(tokens.end, (page + 1) * destination.page_tokens);
    PageIndex destination_page = destination_pages.pages[page - destination_pages.first_page];
    for (int layer = layers.begin; layer < layers.end; ++layer) {
      for (int plane = 0; plane < source.num_planes; ++plane) {
        for (int head = heads.begin; head < heads.end; ++head) {
          int64_t to = destination.HeadOffset(destination_page, layer, plane, head - destination.first_head());
          for (int token = page_begin; token < page_end;) {
            int source_page = token / source.page_tokens;
            int run_end = std::min(page_end, (source_page + 1) * source.page_tokens);
            PageIndex from_page = source_pages.pages[source_page - source_pages.first_page];
            Append(runs, {source.HeadOffset(from_page, layer, plane, head - source.first_head()) +
                              token % source.page_tokens * source.token_bytes(),
                          to + token % destination.page_tokens * destination.token_bytes(),
                          (run_end - token) * source.token_bytes()});
            token = run_end;
          }
        }
      }
    }
    page_begin = page_end;
  }
  return runs;
}

}  // namespace tandem
