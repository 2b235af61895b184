#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/tls/tls_stream.h"
#include "kvtransfer/event_loop.h"
#include "kvtransfer/kv_sender.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transfer_faults.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

namespace tandem {

// A decode worker to link to.
struct LinkPeer {
  std::string worker_id;
  Incarnation incarnation;
  std::string address;  // host:port
  bool operator==(const LinkPeer&) const = default;
};

// State of the link to one decode worker, as it is logged, exported and reported to routers.
struct LinkState {
  std::string worker_id;
  Incarnation incarnation;
  bool up = false;
  std::string transport;
  std::string path;  // As of RemotePool.
  double gigabytes_per_second = 0, latency_us = 0;
  std::string error;  // Why it is down; or, while it is up, which transports were passed over, and why.
};

// What the hub tells its owner. Called on the link thread; must not block.
class SenderEvents {
 public:
  virtual ~SenderEvents() = default;
  // The KV of the hand-over is read no more. Once for each that was started.
  virtual void OnOutcome(const HandoverOutcome& outcome) = 0;
  virtual void OnLinkState(const LinkState& state) = 0;
  // So many messages were of unknown hand-overs or old epochs.
  virtual void OnIgnoredMessages(int64_t count) = 0;
  // A decode worker keeps pages in quarantine until this process is gone.
  virtual void OnMustRestart(const std::string& reason) = 0;
};

// All links of a prefill worker, and the thread that owns them.
//
// Links are made, tested and re-made by themselves; a lost one ends its hand-overs as kLost, when its last
// writes have landed or were given up. A link is made anew only after that, so that the decode worker can be told
// whether writes of the old one may still land.
//
// Thread-safety: thread-safe; calls are posted to the link thread.
// Ownership: owns the thread, links and transports. Borrows the pool and the events, which outlive
// it.
class SenderHub {
 public:
  struct Options {
    HelloMessage hello;                     // Of this worker; without exports.
    std::shared_ptr<const TlsContext> tls;  // Null: in the clear.
    const uint8_t* pool = nullptr;
    PoolMemory* memory = &HostMemory();  // Where it lies.
    absl::Duration heartbeat = absl::Milliseconds(250);
    int missed_heartbeats = 4;
    // A link that reaches less than `minimum_share` of its transport's rate here, in bytes a second, is not made.
    std::map<std::string, double> expected_rates;
    double minimum_share = 0.5;
    absl::Duration reconnect_delay = absl::Milliseconds(200);
    TransferFaults faults;  // For fault drills.
  };
  // `transports` in order of preference.
  static absl::StatusOr<std::unique_ptr<SenderHub>> Create(Options options,
                                                           std::vector<std::unique_ptr<Transport>> transports,
                                                           SenderEvents& events);
  ~SenderHub();
  // Ends the thread and all links; no callback runs after it. Calls are then ignored. Idempotent.
  void Stop();
  // This worker leaves as it was asked to: that links end is no alarm any more.
  void SetLeaving() { leaving_ = true; }

  // The decode workers there are now: links to others are dropped.
  void SetPeers(std::vector<LinkPeer> peers);
  // As KvSender's methods, on the link to that incarnation. Without one Start gives kLost at once, and the others do
  // nothing.
  void Start(Incarnation peer, HandoverId handover, std::vector<TokenId> tokens, std::vector<PageIndex> pages);
  void LayersReady(Incarnation peer, HandoverId handover, IndexRange tokens, IndexRange layers,
                   std::shared_ptr<const SourceEvent> ready = nullptr);
  void Finish(Incarnation peer, HandoverId handover, TokenId first_token);
  void Cancel(Incarnation peer, HandoverId handover, const std::string& reason);

 private:
  class Link;
  // A pool of a lost link whose last writes are under way.
  struct RetiredPool {
    Incarnation peer;
    std::unique_ptr<RemotePool> pool;
    std::vector<HandoverOutcome> outcomes;  // Told when nothing reads the source any more.
    absl::Time give_up;
  };
  SenderHub(Options options, std::vector<std::unique_ptr<Transport>> transports, SenderEvents& events,
            std::unique_ptr<EventLoop> loop);
  // Runs `action` on the link's sender, where there is one, and carries out what it wants. Without a link only
  // `without` is run: the hand-overs that were begun on it have their outcome already, or get it when their writes are
  // over.
  void OnLink(
      Incarnation peer, absl::AnyInvocable<void(KvSender&)> action, absl::AnyInvocable<void()> without = [] {});
  void ApplyPeers(const std::vector<LinkPeer>& peers);
  // Takes over the pool of a lost link with what its hand-overs ended in.
  void Retire(Incarnation peer, std::unique_ptr<RemotePool> pool, std::vector<HandoverOutcome> outcomes);
  // Ends retired pools whose writes have landed; true while there are others.
  bool SettleRetired();
  bool IsSettling(Incarnation peer) const;
  void Tick();
  bool Poll();

  const Options options_;
  const std::vector<std::unique_ptr<Transport>> transports_;
  SenderEvents& events_;
  const std::unique_ptr<EventLoop> loop_;
  std::atomic<bool> leaving_ = false;
  // Link thread only.
  absl::flat_hash_map<Incarnation, std::unique_ptr<Link>> links_;
  std::vector<RetiredPool> retired_;
  absl::flat_hash_set<Incarnation> unsettled_;  // Peers to which writes were given up that may still land.
  std::thread thread_;
};

}  // namespace tandem
