#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/worker_messages.h"
#include "decode/decode_metrics.h"
#include "engine/engine_thread.h"
#include "kvtransfer/kv_receiver.h"

namespace tandem {

// The pages of an engine's KV cache, as hand-overs need them.
//
// Thread-safety: the engine thread only. Ownership: borrows the engine.
class EngineHandoverPages final : public HandoverPages {
 public:
  explicit EngineHandoverPages(Engine& engine) : engine_(engine), cache_(engine.cache()) {}
  bool HasRoom(int granted) const override { return engine_.CanTakeKv(granted); }
  std::vector<PageIndex> AcquireHeld(absl::Span<const TokenId> tokens) override;
  std::optional<std::vector<PageIndex>> AllocateGranted(int count) override;
  void MarkCommitted(absl::Span<const PageIndex> pages) override;
  void Quarantine(absl::Span<const PageIndex> pages) override;
  void Free(absl::Span<const PageIndex> pages) override;

 private:
  const Engine& engine_;
  KvCache& cache_;
};

// The life of every leg on a decode worker: waiting for KV or prefilling here, decoding, gone.
//
// Thread-safety: the engine thread only.
// Ownership: borrows everything, which outlives it.
class DecodeWorker {
 public:
  // Sends events to the router of this session, all of one engine step together.
  using Send = std::function<void(int64_t session, EventFrame events)>;
  // Sends a link message to a prefill worker.
  using SendToPeer = std::function<void(Incarnation peer, LinkMessage message)>;
  DecodeWorker(const Clock& clock, KvReceiver& receiver, DecodeMetrics& metrics, Send send, SendToPeer send_to_peer)
      : clock_(clock),
        receiver_(receiver),
        metrics_(metrics),
        send_(std::move(send)),
        send_to_peer_(std::move(send_to_peer)) {}

  void OnCommands(Engine& engine, int64_t session, const CommandFrame& frame);
  // The router is gone: its legs end.
  void OnSessionClosed(Engine& engine, int64_t session);
  void OnEngineEvents(std::vector<SequenceEvent> events);
  void OnLinkMessage(Engine& engine, Incarnation peer, const LinkMessage& message);
  void OnPeerUp(const HelloMessage& hello);
  void OnPeerLost(Incarnation peer, bool writes_over);
  void OnWritesOver(Incarnation peer);
  // Deadlines of legs that wait for KV, and offers that wait for pages.
  void OnTurn();
  int num_legs() const { return static_cast<int>(legs_.size()); }

 private:
  void SendOne(int64_t session, LegEvent event) { send_(session, {{std::move(event)}}); }
  struct Leg {
    int64_t session = 0;
    StartLeg start;
    bool awaits_kv = false;
    absl::Time started;
    std::shared_ptr<FormatJob> format_job;  // While it awaits KV.
  };
  void StartLegNow(Engine& engine, int64_t session, const StartLeg& start);
  void CancelLegNow(Engine& engine, RequestId id, const std::string& reason);
  void OnCommit(Engine& engine, Incarnation peer, const CommitMessage& commit);
  void TakeOver(Engine& engine, const ReceivedKv& received);
  // Tells the router that a leg failed before its KV came, and forgets it.
  void FailWaiting(HandoverId handover, const absl::Status& error);
  void SendPeerMessages();

  const Clock& clock_;
  KvReceiver& receiver_;
  DecodeMetrics& metrics_;
  const Send send_;
  const SendToPeer send_to_peer_;
  absl::flat_hash_map<RequestId, Leg> legs_;
  absl::flat_hash_map<HandoverId, RequestId> handovers_;  // Of legs that await KV.
};

}  // namespace tandem
