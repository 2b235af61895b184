#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/worker_messages.h"
#include "engine/engine_thread.h"
#include "kvtransfer/kv_sender.h"
#include "prefill/prefill_metrics.h"

namespace tandem {

// Where a prefill worker's KV goes: the sender hub, or a fake in tests. Thread-safe.
class KvDestination {
 public:
  virtual ~KvDestination() = default;
  virtual void Start(Incarnation peer, HandoverId handover, std::vector<TokenId> tokens,
                     std::vector<PageIndex> pages) = 0;
  // `ready`: when the KV is there; null: now.
  virtual void LayersReady(Incarnation peer, HandoverId handover, IndexRange tokens, IndexRange layers,
                           std::shared_ptr<const SourceEvent> ready) = 0;
  virtual void Finish(Incarnation peer, HandoverId handover, TokenId first_token) = 0;
  virtual void Cancel(Incarnation peer, HandoverId handover, const std::string& reason) = 0;
};

// The life of every leg on a prefill worker: queued, computing, held until decode has its KV, gone.
//
// A leg's pages are kept while its hand-over may read them: whatever ends a leg first ends the
// hand-over, and frees the pages when that is told to be over.
//
// Thread-safety: the engine thread only.
// Ownership: borrows everything, which outlives it.
class PrefillWorker {
 public:
  // Sends events to the router of this session, all of one engine step together.
  using Send = std::function<void(int64_t session, EventFrame events)>;
  PrefillWorker(absl::Duration kv_hold, const Clock& clock, KvDestination& destination, PrefillMetrics& metrics,
                Send send)
      : kv_hold_(kv_hold), clock_(clock), destination_(destination), metrics_(metrics), send_(std::move(send)) {}

  void OnCommands(Engine& engine, int64_t session, const CommandFrame& frame);
  // The router is gone: its legs end.
  void OnSessionClosed(Engine& engine, int64_t session);
  void OnProgress(const Engine& engine, const KvProgress& progress);
  void OnEngineEvents(Engine& engine, std::vector<SequenceEvent> events);
  void OnOutcome(Engine& engine, const HandoverOutcome& outcome);
  // Ends legs that nobody fetched in time.
  void OnTurn(Engine& engine);
  int num_legs() const { return static_cast<int>(legs_.size()); }

 private:
  void SendOne(int64_t session, LegEvent event) { send_(session, {{std::move(event)}}); }
  struct Leg {
    int64_t session = 0;
    StartLeg start;
    bool scheduled = false;  // The engine has begun to compute it.
    bool offered = false;    // The current hand-over was started and has had no outcome yet.
    int open_handovers = 0;  // Without an outcome, the current and older ones: their pushes may still read the pages.
    bool over = false;       // Nobody wants it any more; it waits for the last outcome.
    std::optional<TokenId> first_token;
    absl::Time held_since = absl::InfiniteFuture();
    absl::Time started;
  };
  void StartLegNow(Engine& engine, int64_t session, const StartLeg& start);
  void CancelLegNow(Engine& engine, RequestId id, const std::string& reason);
  void Retarget(Engine& engine, const CancelLeg& command);
  // Starts the current hand-over.
  void Offer(const Engine& engine, Leg& leg);
  // Frees the pages of a leg that is over, unless a hand-over may still read them.
  void FreeIfUnread(Engine& engine, RequestId id);
  // Ends the leg and its hand-over.
  void EndLeg(Engine& engine, RequestId id, const std::string& reason);

  const absl::Duration kv_hold_;
  const Clock& clock_;
  KvDestination& destination_;
  PrefillMetrics& metrics_;
  const Send send_;
  absl::flat_hash_map<RequestId, Leg> legs_;
  absl::flat_hash_map<HandoverId, RequestId> handovers_;  // Those without an outcome.
};

}  // namespace tandem
