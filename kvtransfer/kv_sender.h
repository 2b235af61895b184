#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/source_event.h"
#include "kvtransfer/page_sums.h"
#include "kvtransfer/transfer_plan.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

namespace tandem {

// A copy that the link must make now.
struct PushOrder {
  HandoverId handover;
  WriteOrder write;
  std::shared_ptr<const SourceEvent> ready;  // When its source is there; null: now.
};

// The last word on a hand-over: its source pages are read no more.
struct HandoverOutcome {
  enum class Kind {
    kAcked,    // Decode took over.
    kRefused,  // Decode said no.
    kAborted,  // Cancelled by either side.
    kLost,     // The link went down.
  };
  HandoverId handover;
  Kind kind = Kind::kAcked;
  std::string reason;
  ErrorReason error_reason = ErrorReason::kUnknown;
  absl::Duration transfer_time;  // kAcked: first push (or Commit) to Ack.
  int64_t bytes = 0;             // Pushed.
};

// The prefill side of docs/kv_protocol.md for one link: what to send, copy and report, in answer to
// what the engine and the peer say. Pure: no socket, clock or memory; the link carries out what
// Take* returns.
//
// Thread-safety: not thread-safe; the link thread owns it.
class KvSender {
 public:
  KvSender(const KvLayout& source, const KvLayout& destination, bool checksums, const uint8_t* pool)
      : source_(source), destination_(destination), checksums_(checksums), pool_(pool) {}

  // Offers the KV of `tokens`, which is or will be in `pages`.
  void Start(HandoverId handover, std::vector<TokenId> tokens, std::vector<PageIndex> pages);
  // KV of these tokens and layers is in the pages, or will be when `ready` is. Every token and layer is reported once.
  void LayersReady(HandoverId handover, IndexRange tokens, IndexRange layers, absl::Time now,
                   std::shared_ptr<const SourceEvent> ready = nullptr);
  // Everything was reported ready; `first_token` goes with the Commit.
  void Finish(HandoverId handover, TokenId first_token);
  // Stops: an outcome follows when no write is in flight.
  void Cancel(HandoverId handover, const std::string& reason);

  // Messages of the peer. Those of unknown hand-overs and old epochs are counted and ignored.
  void OnGrant(const GrantMessage& grant, absl::Time now);
  void OnRefuse(const RefuseMessage& refuse);
  void OnAck(const AckMessage& ack, absl::Time now);
  void OnAbort(const AbortMessage& abort);
  void OnAbortDone(const AbortDoneMessage& done);

  // All pushes that were taken are visible at the destination.
  void OnFlushed();
  // The link is down: all hand-overs end as kLost.
  void LoseAll(const std::string& reason);

  std::vector<LinkMessage> TakeMessages() { return std::exchange(messages_, {}); }
  // Pushes in order, as many as hold about `max_bytes`; others stay for the next call, as do those whose source is not
  // there yet: a flush covers all that was taken, and must not wait for what is still computed. INTERNAL: a device
  // failed.
  absl::StatusOr<std::vector<PushOrder>> TakePushes(int64_t max_bytes);
  bool HasPushes() const { return !pushes_.empty(); }
  std::vector<HandoverOutcome> TakeOutcomes() { return std::exchange(outcomes_, {}); }
  // A flush must be waited for (a commit or an end depends on it).
  bool WantsFlush() const;
  int num_active() const { return static_cast<int>(handovers_.size()); }
  // Messages of unknown hand-overs and old epochs since the last call.
  int64_t TakeIgnoredMessages() { return std::exchange(ignored_messages_, 0); }

 private:
  struct Ready {
    IndexRange tokens, layers;
    std::shared_ptr<const SourceEvent> event;
  };
  struct Handover {
    std::vector<TokenId> tokens;
    std::vector<PageIndex> pages;
    std::optional<GrantMessage> grant;
    std::vector<Ready> ready;            // Reported before the grant came.
    std::optional<TokenId> first_token;  // Set: finished.
    int pending = 0;                     // Pushes that were not taken yet.
    bool unflushed = false;              // Pushes were taken that no flush has covered yet.
    bool committed = false;
    enum class Ending { kNone, kByUs, kByPeer } ending = Ending::kNone;
    std::string end_reason;
    ErrorReason end_error = ErrorReason::kUnknown;
    absl::Time first_push = absl::InfiniteFuture();
    int64_t bytes = 0;
    std::shared_ptr<PageSums> sums;  // From the grant on, where checksums are on.
  };
  // Forgets pushes of a hand-over that ends: they must not touch the peer any more.
  void DropPushes(HandoverId id);
  void Push(HandoverId id, Handover& handover, const Ready& ready, absl::Time now);
  // Sends Commit, or ends an aborted hand-over, if nothing is in flight any more.
  void MoveOn(HandoverId id);
  void End(HandoverId id, HandoverOutcome::Kind kind, const std::string& reason,
           ErrorReason error_reason = ErrorReason::kUnknown, absl::Duration transfer_time = absl::ZeroDuration());
  // The hand-over, if the message's epoch is that of its grant.
  Handover* FindCurrent(HandoverId id, TransferEpoch epoch);
  const KvLayout source_, destination_;
  const bool checksums_;
  const uint8_t* const pool_;
  absl::flat_hash_map<HandoverId, Handover> handovers_;
  std::vector<LinkMessage> messages_;
  std::deque<PushOrder> pushes_;
  std::vector<HandoverOutcome> outcomes_;
  int64_t ignored_messages_ = 0;
};

}  // namespace tandem
