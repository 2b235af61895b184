#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/ids.h"
#include "kvtransfer/kv_receiver.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/receiver_hub.h"
#include "kvtransfer/sender_hub.h"
#include "kvtransfer/transfer_faults.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

namespace tandem {

// The two ends of a link in one process, with hubs and protocol as in workers and without engines.

inline constexpr absl::Duration kLinkPatience = absl::Seconds(20);

KvLayout LinkTestLayout(int page_tokens);
HelloMessage LinkTestHello(const std::string& worker, Incarnation incarnation, const KvLayout& layout);

std::vector<std::unique_ptr<Transport>> OneTransport(std::unique_ptr<Transport> transport);

// Pages of a decode worker, of which no prefix is ever held. Grants what is free.
class TestPages final : public HandoverPages {
 public:
  explicit TestPages(int count);
  bool HasRoom(int) const override { return true; }
  std::vector<PageIndex> AcquireHeld(absl::Span<const TokenId>) override { return {}; }
  std::optional<std::vector<PageIndex>> AllocateGranted(int count) override;
  void MarkCommitted(absl::Span<const PageIndex> pages) override { Move(pages, State::kGranted, State::kCommitted); }
  void Quarantine(absl::Span<const PageIndex> pages) override { Move(pages, State::kGranted, State::kQuarantined); }
  void Free(absl::Span<const PageIndex> pages) override;
  enum class State { kFree, kGranted, kCommitted, kQuarantined };
  int Count(State state) const;
  State state(PageIndex page) const { return states_[page]; }

 private:
  // Fails the test when a page is in another state than `from`.
  void Move(absl::Span<const PageIndex> pages, State from, State to);
  std::vector<State> states_;
  size_t next_ = 5;  // Where the search for a free one begins.
};

// The decode side, "decode-0": a receiver driven straight from the link thread. Grants all it is asked for.
//
// Thread-safety: thread-safe; mu_ guards all that tests read.
class DecodeEnd final : public ReceiverEvents {
 public:
  struct Options {
    KvLayout layout = LinkTestLayout(16);
    Incarnation incarnation = Incarnation(200);
    // For the layout and the test area, in `memory`; both outlive this. Null: host memory of its own.
    uint8_t* pool = nullptr;
    PoolMemory* memory = &HostMemory();
    // What arrives is given back at once, as if its sequence had ended.
    bool frees_received = false;
    std::string peer_secret;
    std::shared_ptr<const TlsContext> tls;
  };
  explicit DecodeEnd(std::unique_ptr<Transport> transport) : DecodeEnd(std::move(transport), Options()) {}
  DecodeEnd(std::unique_ptr<Transport> transport, const Options& options)
      : DecodeEnd(OneTransport(std::move(transport)), options) {}
  DecodeEnd(std::vector<std::unique_ptr<Transport>> transports, const Options& options);
  ~DecodeEnd() override { hub_->Stop(); }

  void OnHello(int64_t connection, const HelloMessage& hello) override;
  void OnPeerUp(const HelloMessage& hello) override;
  void OnPeerLost(Incarnation peer, bool writes_over) override;
  void OnWritesOver(Incarnation peer) override;
  void OnMessage(Incarnation peer, const LinkMessage& message) override;

  template <typename Predicate>
  bool Await(Predicate predicate) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&predicate), kLinkPatience);
  }
  int port() { return hub_->port(); }

  const Options options_;
  absl::Mutex mu_;
  std::vector<uint8_t> memory_;
  uint8_t* base_ = nullptr;
  TestPages pages_;
  std::unique_ptr<KvReceiver> receiver_;
  std::vector<ReceivedKv> received_;
  HelloMessage hello_;  // The peer's newest.
  int hellos_ = 0;
  std::vector<PageIndex> granted_;
  int lost_ = 0, damaged_ = 0, grants_ = 0;
  bool refuse_ = false, writes_over_ = false;
  std::unique_ptr<ReceiverHub> hub_;
};

// The prefill side, "prefill-0", with random bytes in its pool.
//
// Thread-safety: thread-safe; mu_ guards all that tests read.
class PrefillEnd final : public SenderEvents {
 public:
  struct Options {
    KvLayout layout = LinkTestLayout(16);
    Incarnation incarnation = Incarnation(100);
    TransferFaults faults;
    uint64_t model_fingerprint = 1;
    std::string peer_secret;
    std::shared_ptr<const TlsContext> tls;
    std::map<std::string, double> expected_rates;
    double minimum_share = 0.5;
    // For the layout, in `memory`; both outlive this. Null: host memory of its own.
    uint8_t* pool = nullptr;
    PoolMemory* memory = &HostMemory();
  };
  explicit PrefillEnd(std::unique_ptr<Transport> transport) : PrefillEnd(std::move(transport), Options()) {}
  PrefillEnd(std::unique_ptr<Transport> transport, const Options& options)
      : PrefillEnd(OneTransport(std::move(transport)), options) {}
  PrefillEnd(std::vector<std::unique_ptr<Transport>> transports, const Options& options);
  ~PrefillEnd() override { hub_->Stop(); }

  void OnOutcome(const HandoverOutcome& outcome) override;
  void OnLinkState(const LinkState& state) override;
  void OnIgnoredMessages(int64_t) override {}
  void OnMustRestart(const std::string&) override {}

  template <typename Predicate>
  bool Await(Predicate predicate) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&predicate), kLinkPatience);
  }
  void LinkTo(int port, Incarnation decode = Incarnation(200));
  // Hands over `tokens` in the pages 0, 1, ..., in layer groups of one; without its end if not `finishes`.
  void HandOver(Incarnation decode, HandoverId handover, int tokens, bool finishes = true);
  bool AwaitUp() {
    return Await([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state_.up; });
  }

  const Options options_;
  absl::Mutex mu_;
  std::vector<uint8_t> memory_;  // What the pool holds.
  std::vector<HandoverOutcome> outcomes_;
  LinkState state_;
  std::unique_ptr<SenderHub> hub_;
};

// Links the two and moves 40 tokens in two chunks and three layer groups. The runs that arrived, or none after a failed
// expectation.
std::vector<CopyRun> TransferFortyTokens(PrefillEnd& prefill, DecodeEnd& decode, int source_page_tokens);

// Options that differ from the usual ones in what `set` sets.
template <typename Set>
PrefillEnd::Options With(Set set) {
  PrefillEnd::Options options;
  set(options);
  return options;
}

// Moves forty tokens, and fails the test where other bytes arrive.
void TransferAndCompare(PrefillEnd& prefill, DecodeEnd& decode, int source_page_tokens);

}  // namespace tandem
