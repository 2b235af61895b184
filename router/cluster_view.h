#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/queue_place.h"
#include "common/worker_state.h"
#include "router/worker_speed.h"

namespace tandem {

// What a router knows about one worker.
struct WorkerView {
  WorkerRegistration registration;
  WorkerHeartbeat heartbeat;
  absl::Time last_heard;
  bool session_up = false;  // The command stream works.
  WorkerSpeed speed;
  absl::flat_hash_set<uint64_t> prefix_hashes;  // Written by the view, which also has them the other way round.
  // Legs that this router has there now, and tokens that it gave it to compute, less those that were cached when it
  // did, that have no first token yet: fresher than the heartbeat, but blind to other routers.
  int legs = 0;
  int decoding_legs = 0;  // That get a token of each step.
  int64_t prefill_tokens = 0;
  std::map<QueuePlace, int64_t> prefill_tokens_by_place;  // The same, without zeros.
  // When heartbeat.turns changed last.
  absl::Time last_progress;
  // The engine stood still at this turn when the worker was given up, and has made none since.
  std::optional<int64_t> stands_at_turn;

  // Gives it so many tokens to compute, or takes them back.
  void AddPrefillTokens(const QueuePlace& place, int64_t tokens) {
    prefill_tokens += tokens;
    if ((prefill_tokens_by_place[place] += tokens) == 0) prefill_tokens_by_place.erase(place);
  }
  bool AcceptsWork() const { return session_up && heartbeat.state == "ready" && !stands_at_turn.has_value(); }
};

// All workers and links, as their own reports say. Pure: time is passed in.
//
// Thread-safety: not thread-safe; the router's owner thread owns it.
class ClusterView {
 public:
  // A worker (re)registered. Returns the incarnation that it replaces, if there was another.
  Incarnation Register(const WorkerRegistration& registration, absl::Time now);
  // Of a sequence that some worker of each role can take; 0 without workers.
  int MaxContextTokens() const;
  // A heartbeat; ignored from unknown incarnations.
  // False: heartbeats are missing before it, and with them what the worker has cached.
  bool OnHeartbeat(Incarnation worker, const WorkerHeartbeat& heartbeat, absl::Time now);
  void SetSessionUp(Incarnation worker, bool up);
  void Remove(Incarnation worker);
  // Workers that were silent for `timeout`, or whose engine made no turn for `stuck_timeout`. The latter get no work
  // when they register again, until their engine makes a turn.
  std::vector<Incarnation> Lost(absl::Time now, absl::Duration timeout, absl::Duration stuck_timeout);

  // How many tokens of a prompt's beginning each worker has in its prefix cache; those that have none are left out.
  absl::flat_hash_map<Incarnation, int> PrefixHits(absl::Span<const TokenId> tokens) const;

  WorkerView* Find(Incarnation worker);
  const WorkerView* Find(Incarnation worker) const;
  const WorkerView* FindByName(const std::string& worker_id) const;
  const absl::flat_hash_map<Incarnation, WorkerView>& workers() const { return workers_; }
  bool LinkUp(Incarnation prefill, Incarnation decode) const;
  // A link is down, until the prefill worker's next heartbeat says otherwise.
  void SetLinkDown(Incarnation prefill, Incarnation decode);
  bool HasRole(Role role) const;
  // What prefill workers must link to: the decode workers.
  std::vector<DirectedPeer> DecodePeers() const;
  // Requests can be placed: decode accepts work and, in a cluster that is `split`, a prefill worker that is linked to
  // it.
  bool Ready(bool split) const;

 private:
  void ForgetPrefixes(WorkerView& view);
  void ForgetPrefix(uint64_t hash, Incarnation worker);

  absl::flat_hash_map<Incarnation, WorkerView> workers_;
  absl::flat_hash_map<Incarnation, int64_t> standing_;                          // At which turn.
  absl::flat_hash_map<uint64_t, absl::InlinedVector<Incarnation, 2>> holders_;  // Of each cached page.
};

}  // namespace tandem
