#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/kv_layout.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/wire.h"

namespace tandem {

// Pages for hand-overs, as the decode worker's KV cache gives them.
//
// Thread-safety: not thread-safe; called on the engine thread.
class HandoverPages {
 public:
  virtual ~HandoverPages() = default;
  // Whether one more sequence may come, beside the `granted` that are on their way.
  virtual bool HasRoom(int granted) const = 0;
  // Pages that hold the longest known prefix of `tokens`, full pages only, with a reference each.
  virtual std::vector<PageIndex> AcquireHeld(absl::Span<const TokenId> tokens) = 0;
  // Pages in state granted; nullopt when there are too few.
  virtual std::optional<std::vector<PageIndex>> AllocateGranted(int count) = 0;
  virtual void MarkCommitted(absl::Span<const PageIndex> pages) = 0;
  virtual void Quarantine(absl::Span<const PageIndex> pages) = 0;
  // Gives back pages of any state but free.
  virtual void Free(absl::Span<const PageIndex> pages) = 0;
};

// KV that arrived in full and was verified.
struct ReceivedKv {
  HandoverId handover;
  std::vector<PageIndex> pages;  // All of the sequence's, from the first token on.
  TokenId first_token = 0;
};

// The decode side of docs/kv_protocol.md for all links of a worker: grants pages, verifies commits,
// and keeps pages that a lost writer may still write to out of circulation.
//
// Pure but for the page source: no socket, no clock.
//
// Thread-safety: not thread-safe; the engine thread owns it.
// Ownership: borrows the pages and the pool, which outlive it.
class KvReceiver {
 public:
  struct Options {
    // An offer that finds no pages, or whose decode leg has not been started, waits this long, then
    // is refused.
    absl::Duration offer_wait = absl::Seconds(5);
  };
  struct Counters {
    int64_t grants = 0, refusals = 0, commits = 0, aborts = 0, ignored_messages = 0, checksum_failures = 0;
  };
  // `memory`: where the pool lies.
  KvReceiver(const Options& options, const KvLayout& layout, const uint8_t* pool, HandoverPages& pages,
             PoolMemory& memory = HostMemory())
      : options_(options), layout_(layout), pool_(pool), memory_(memory), pages_(pages) {}

  // A link came up; `checksums`: its commits carry them.
  void OnPeerUp(Incarnation peer, const std::string& worker_id, const KvLayout& layout, bool checksums);
  // Its link went down: granted pages become quarantined. With `writes_over` (nothing it wrote can
  // land any more) they are free at once. Returns the hand-overs that were hit.
  std::vector<HandoverId> OnPeerLost(Incarnation peer, bool writes_over);
  // Nothing that was written over a lost link can land any more: its process is dead, or says so of
  // itself. Its quarantined pages are free.
  void OnWritesOver(Incarnation peer);
  // Whether pages wait for that: then a new link to the peer is refused.
  bool IsFenced(Incarnation peer) const;

  // The decode leg of this hand-over was started: an offer of exactly these tokens may be granted.
  void Expect(HandoverId handover, std::vector<TokenId> tokens);
  // The decode leg ended before its KV was taken over.
  void Cancel(HandoverId handover, const std::string& reason);

  void OnOffer(Incarnation peer, OfferMessage offer, absl::Time now);
  void OnAbort(Incarnation peer, const AbortMessage& abort);
  void OnAbortDone(Incarnation peer, const AbortDoneMessage& done);
  // Verifies and hands over. nullopt for stale messages. DATA_LOSS (CHECKSUM_MISMATCH): the
  // hand-over is aborted, and its pages are free after the peer's AbortDone; so it is with INTERNAL, of a device that
  // cannot verify them.
  absl::StatusOr<std::optional<ReceivedKv>> OnCommit(Incarnation peer, const CommitMessage& commit);
  // Pages may have become free, or time has passed: grants or refuses what waits.
  void RetryWaiting(absl::Time now);

  std::vector<std::pair<Incarnation, LinkMessage>> TakeMessages() { return std::exchange(messages_, {}); }
  const Counters& counters() const { return counters_; }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }

 private:
  struct Peer {
    std::string worker_id;
    KvLayout layout;
    bool checksums = false;
  };
  struct Waiting {
    Incarnation peer;
    OfferMessage offer;
    absl::Time since;
  };
  struct Granted {
    Incarnation peer;
    TransferEpoch epoch;
    std::vector<PageIndex> held;   // The prefix that was here already.
    std::vector<PageIndex> pages;  // What the peer writes to.
    int num_tokens = 0;
    bool aborting = false;  // Quarantined; AbortDone is awaited.
  };
  // Hand-overs whose KV is on its way.
  int num_granted() const;
  bool TryGrant(const Waiting& waiting);
  void Refuse(Incarnation peer, HandoverId handover, const std::string& reason,
              ErrorReason error_reason = ErrorReason::kUnknown);
  // Takes a granted hand-over's pages out of circulation until the peer's AbortDone.
  void AbortGranted(HandoverId handover, const std::string& reason, ErrorReason error_reason);
  Granted* FindCurrent(Incarnation peer, HandoverId handover, TransferEpoch epoch);
  void ReleaseGranted(HandoverId handover);
  // INTERNAL: the device that holds the pages failed.
  absl::StatusOr<bool> ChecksumsMatch(const Granted& granted, const CommitMessage& commit) const;

  const Options options_;
  const KvLayout layout_;
  const uint8_t* const pool_;
  PoolMemory& memory_;
  HandoverPages& pages_;
  absl::flat_hash_map<Incarnation, Peer> peers_;
  absl::flat_hash_map<HandoverId, std::vector<TokenId>> expected_;  // With the tokens of their legs.
  std::vector<Waiting> waiting_;                                    // Oldest first.
  absl::flat_hash_map<HandoverId, Granted> granted_;
  // Pages whose writer is gone but not known to be dead.
  absl::flat_hash_map<Incarnation, std::vector<PageIndex>> quarantined_;
  std::vector<std::pair<Incarnation, LinkMessage>> messages_;
  Counters counters_;
  uint64_t next_epoch_ = 1;
};

}  // namespace tandem
