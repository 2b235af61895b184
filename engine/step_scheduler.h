#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "engine/kv_cache.h"
#include "engine/sequence.h"

namespace tandem {

// The tokens that one step computes for one sequence.
struct StepItem {
  Sequence* sequence = nullptr;
  int num_tokens = 0;
};

// Decides what each engine step computes: continuous batching, chunked prefill under a token
// budget, prefix reuse, preemption by recompute.
//
// Order: sequences that decode come first, then those in the middle of their prefill, then waiting
// ones. What waits is ordered by its place (queue_place.h), then by arrival; what runs by priority, then by arrival,
// since when a first token is wanted says nothing of the others. When pages run out while decoding, the last in that
// order loses its pages and waits again; its tokens stay. One whose format is being compiled is passed by the others:
// it is not admitted, or, where its KV came from elsewhere, does not decode.
//
// Thread-safety: not thread-safe; the engine thread owns it. No clock: time is passed in.
// Ownership: owns the sequences; borrows the KV cache, which outlives it.
class StepScheduler {
 public:
  struct Options {
    int max_step_tokens = 256;
    int max_running = 32;
    // Prompt tokens of a step in which others decode: they wait for the prompt's part of the step, too.
    int max_prefill_beside_decode = std::numeric_limits<int>::max();
  };
  StepScheduler(const Options& options, KvCache& cache) : options_(options), cache_(cache) {}

  // Adds a sequence without KV; it waits.
  void Add(std::unique_ptr<Sequence> sequence);
  // Adds a sequence whose KV is there but for its last token; it decodes from the next step on.
  void AddRunning(std::unique_ptr<Sequence> sequence);
  // Takes a sequence out, with its pages still referenced; null when there is none of this id.
  std::unique_ptr<Sequence> Remove(RequestId id);
  Sequence* Find(RequestId id) const;
  // Ids of sequences whose deadline is over.
  std::vector<RequestId> Expired(absl::Time now) const;

  // The next step. Sequences in it have pages for all tokens of the step. Empty when nothing can
  // run.
  std::vector<StepItem> Plan(absl::Time now);

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  // Sequences wait for pages or for a place among the running ones, and not for their turn in a step only: whoever
  // comes with KV of its own would take from them.
  bool is_short() const { return is_short_ && !waiting_.empty(); }
  int64_t waiting_tokens() const;
  int64_t preemptions() const { return preemptions_; }
  bool empty() const { return sequences_.empty(); }

 private:
  void InsertRunning(Sequence* sequence);
  void InsertWaiting(Sequence* sequence);
  // Gives `sequence` pages for `tokens` tokens in all, preempting later ones; false when it had to
  // be preempted itself.
  bool GrowPages(Sequence* sequence, int tokens);
  void Preempt(Sequence* sequence);
  bool TryAdmit(Sequence* sequence, absl::Time now);

  const Options options_;
  KvCache& cache_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // Have pages; in order.
  std::vector<Sequence*> waiting_;  // Have none; in order.
  int64_t preemptions_ = 0;
  bool is_short_ = false;  // As the last plan found.
};

}  // namespace tandem
