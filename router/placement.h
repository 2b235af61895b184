#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/queue_place.h"
#include "common/topology.h"
#include "router/cluster_view.h"

namespace tandem {

struct PlacementRequest {
  absl::Span<const TokenId> tokens;
  // The cluster is meant to have prefill workers: without one nothing is placed, rather than all on
  // decode.
  bool split = true;
  QueuePlace place;  // What waits behind it is not counted.
  // Keep this prefill worker, which holds the KV, and choose a decode worker only.
  Incarnation fixed_prefill;
  int max_output_tokens = std::numeric_limits<int>::max();
  // Not these, if there are others: they just failed this request.
  std::vector<Incarnation> avoid;
  // A prompt of which a decode worker had to compute at most so many tokens may be prefilled there, when its first
  // token comes clearly earlier so. 0: never.
  int conditional_prefill_tokens = 0;
  // Requests with the same one go to the same workers where those are about as good as the best; 0: none.
  uint64_t affinity = 0;
  PlacementPolicy policy = PlacementPolicy::kPredicted;
  uint64_t turn = 0;  // Counts the requests, for kRoundRobin.
  // Decides between equals. Routers that share workers must not all choose the same.
  uint64_t random = 0;
};

// That an answer is taken to have, where it may: weighs what its tokens cost against what its prompt does.
inline constexpr int kTypicalOutputTokens = 64;

struct Placement {
  Incarnation prefill;  // Not set: decode does both.
  Incarnation decode;
  int prefill_hit_tokens = 0;  // Of the prompt, in the chosen workers' prefix caches.
  int decode_hit_tokens = 0;
  absl::Duration predicted_ttft;  // From now on.
  // Others are before it, and predicted_ttft is of a rate that was measured. Who would be the first may always come:
  // a rate that was measured in a bad moment must not keep all away who could show a better one.
  bool is_sure_to_wait = false;
  absl::Duration predicted_tpot;  // Beside those that decode there now.
  // Others decode on the decode worker, and predicted_tpot is of what was measured of it.
  bool is_sure_to_share = false;
  std::string reason;  // The figures of the choice, for logs.
};

// Chooses workers for a request: the prefill worker from which the first token is predicted to come first (the prompt
// tokens that it has queued, and those of this prompt that it does not have cached, at the rate that was measured of
// it), and of the decode workers linked to it the one with the shortest predicted time per token, counting what is
// missing: free pages, and a link that moves the KV faster than it is computed.
//
// Where the KV would come late by more than a little of the whole answer, the next prefill workers are looked at, too,
// up to four in all, and the pair is taken whose answer is predicted to end first.
//
// Of the workers that are as good as the best, those in the prefill worker's domain are left, if there are some, for
// links between domains are shared by many; two of these are drawn, and the one with fewer requests is taken; or, with
// an affinity, always the same one.
//
// UNAVAILABLE (LINK_DOWN or WORKER_LOST) says what is missing; INVALID_ARGUMENT (REQUEST_TOO_LONG) when no worker could
// ever run it. Other policies choose among the same workers, and predict nothing; short prompts do not run on decode
// alone then.
//
// Cost: one lookup for each page of the prompt that some worker has, and a constant for each worker and for each link
// of the prefill workers that are looked at.
absl::StatusOr<Placement> Place(const ClusterView& view, const PlacementRequest& request);

}  // namespace tandem
