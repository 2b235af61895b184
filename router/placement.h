#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "router/cluster_view.h"

namespace tandem {

struct PlacementRequest {
  absl::Span<const TokenId> tokens;
  // The cluster is meant to have prefill workers: without one nothing is placed, rather than all on
  // decode.
  bool split = true;
  // Keep this prefill worker, which holds the KV, and choose a decode worker only.
  Incarnation fixed_prefill;
  // Not these, if there are others: they just failed this request.
  std::vector<Incarnation> avoid;
};

struct Placement {
  Incarnation prefill;  // Not set: decode does both.
  Incarnation decode;
  int prefill_hit_tokens = 0;  // Of the prompt, in the chosen workers' prefix caches.
  int decode_hit_tokens = 0;
  std::string reason;  // The figures of the chosen pair, for logs.
};

// Chooses workers for a request: the prefill worker with the fewest tokens to compute before the
// first token (its queue and this prompt, less what it has cached), and of the decode workers
// linked to it the one with the least load, counting pages that it lacks. Ties go to the lower
// worker name. UNAVAILABLE (LINK_DOWN or WORKER_LOST) says what is missing; INVALID_ARGUMENT
// (REQUEST_TOO_LONG) when no worker could ever run it.
absl::StatusOr<Placement> Place(const ClusterView& view, const PlacementRequest& request);

}  // namespace tandem
