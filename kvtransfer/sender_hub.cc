#include "kvtransfer/sender_hub.h"

#include <sys/epoll.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/log.h"
#include "kvtransfer/frame_socket.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/self_test.h"

namespace tandem {
namespace {

// More are copied in the next turn, so that heartbeats go out in between.
constexpr int64_t kMaxBytesPerTurn = int64_t{64} << 20;
constexpr absl::Duration kSlowLinkPause = absl::Seconds(10);

}  // namespace

// The link to one decode worker: connecting -> greeted -> tested -> up, and back to waiting after a
// loss.
//
// Thread-safety: the link thread only.
// Ownership: borrows the hub's parts, which outlive it.
class SenderHub::Link {
 public:
  Link(SenderHub& hub, LinkPeer peer) : hub_(hub), peer_(std::move(peer)) {
    state_.worker_id = peer_.worker_id;
    state_.incarnation = peer_.incarnation;
  }
  ~Link() { Lose("the decode worker left the cluster", /*is_meant=*/true); }

  const LinkPeer& peer() const { return peer_; }
  KvSender* sender() { return sender_.get(); }

  void Tick(absl::Time now) {
    if (socket_ == nullptr) {
      if (now >= next_attempt_ && !hub_.IsSettling(peer_.incarnation)) Connect(now);
      return;
    }
    const absl::Duration silence_limit = hub_.options_.heartbeat * hub_.options_.missed_heartbeats;
    // The answer to Hello may take as long as the other links' tests.
    const absl::Duration limit = sender_ != nullptr ? silence_limit : silence_limit * 10;
    if (now - last_heard_ > limit) {
      Lose(absl::StrCat("nothing heard for ", absl::FormatDuration(now - last_heard_)));
      return;
    }
    if (sender_ != nullptr) Send(LinkHeartbeatMessage{hub_.options_.hello.incarnation, ++heartbeats_});
  }

  // Carries out what the sender wants; true while a flush is awaited.
  bool Pump() {
    if (sender_ == nullptr) return false;
    absl::StatusOr<std::vector<PushOrder>> pushes = sender_->TakePushes(kMaxBytesPerTurn);
    if (!pushes.ok()) {
      Lose(absl::StrCat("the KV to write is lost: ", pushes.status().message()));
      return false;
    }
    for (PushOrder& push : *pushes) {
      if (absl::Status status = pool_->Write(std::move(push.write)); !status.ok()) {
        Lose(absl::StrCat("write failed: ", status.message()));
        return false;
      }
    }
    bool waiting = sender_->HasPushes();
    if (sender_->WantsFlush()) {
      absl::StatusOr<bool> flushed = pool_->PollFlushed();
      if (!flushed.ok()) {
        Lose(absl::StrCat("write failed: ", flushed.status().message()));
        return false;
      }
      waiting |= !*flushed;
      if (*flushed) sender_->OnFlushed();
    }
    for (const LinkMessage& message : sender_->TakeMessages()) Send(message);
    for (const HandoverOutcome& outcome : sender_->TakeOutcomes()) hub_.events_.OnOutcome(outcome);
    if (int64_t ignored = sender_->TakeIgnoredMessages(); ignored > 0) hub_.events_.OnIgnoredMessages(ignored);
    return waiting;
  }

 private:
  void Connect(absl::Time now) {
    next_attempt_ = now + hub_.options_.reconnect_delay;
    failures_.clear();
    absl::StatusOr<int> fd = FrameSocket::Connect(peer_.address);
    if (!fd.ok()) {
      Report(std::string(fd.status().message()));
      return;
    }
    last_heard_ = now;
    socket_ = std::make_unique<FrameSocket>(
        *hub_.loop_, *fd,
        FrameSocket::Callbacks{.on_frame = [this](absl::string_view payload) { OnFrame(payload); },
                               .on_closed = [this](const std::string& reason) { Lose(reason); }},
        hub_.options_.tls);
    HelloMessage hello = hub_.options_.hello;
    hello.writes_over = !hub_.unsettled_.contains(peer_.incarnation);
    Send(hello);
  }

  void Send(const LinkMessage& message) {
    if (socket_ != nullptr) socket_->Send(EncodeLinkMessage(message));
  }

  void OnFrame(absl::string_view payload) {
    last_heard_ = Clock::Real().Now();
    absl::StatusOr<LinkMessage> message = DecodeLinkMessage(payload);
    if (!message.ok()) {
      Lose(std::string(message.status().message()));
      return;
    }
    if (const auto* hello = std::get_if<HelloMessage>(&*message)) {
      OnHello(*hello);
    } else if (std::holds_alternative<LinkReadyMessage>(*message)) {
      OnReady();
    } else if (const auto* refused = std::get_if<LinkRefusedMessage>(&*message)) {
      OnRefused(*refused);
    } else if (sender_ != nullptr) {
      absl::Time now = Clock::Real().Now();
      if (const auto* grant = std::get_if<GrantMessage>(&*message)) sender_->OnGrant(*grant, now);
      if (const auto* refuse = std::get_if<RefuseMessage>(&*message)) sender_->OnRefuse(*refuse);
      if (const auto* ack = std::get_if<AckMessage>(&*message); ack != nullptr && !drops_acks()) {
        sender_->OnAck(*ack, now);
      }
      if (const auto* abort = std::get_if<AbortMessage>(&*message)) sender_->OnAbort(*abort);
      if (const auto* done = std::get_if<AbortDoneMessage>(&*message)) sender_->OnAbortDone(*done);
      Pump();
    }
  }

  void OnHello(const HelloMessage& hello) {
    if (hello.incarnation != peer_.incarnation) {
      Lose(absl::StrCat("another process answers at ", peer_.address));
      return;
    }
    if (pool_ != nullptr) return;  // It said so before.
    if (absl::Status status = CheckHellos(hub_.options_.hello, hello); !status.ok()) {
      Lose(std::string(status.message()));
      return;
    }
    peer_hello_ = hello;
    next_transport_ = 0;
    failures_.clear();
    is_too_slow_ = false;
    TryNextTransport();
  }

  // Tests transports in order of preference until one works.
  void TryNextTransport() {
    while (next_transport_ < hub_.transports_.size()) {
      Transport& transport = *hub_.transports_[next_transport_++];
      for (const PoolExport& pool : peer_hello_.exports) {
        if (pool.transport != transport.name()) continue;
        if (transport.same_host_only() && peer_hello_.host_boot_id != hub_.options_.hello.host_boot_id) {
          failures_.push_back(absl::StrCat(transport.name(), ": the decode worker is on another host"));
          continue;
        }
        if (absl::Status status = Test(transport, pool); status.ok()) {
          return;  // The peer's verdict comes as LinkReady or LinkRefused.
        } else {
          failures_.push_back(absl::StrCat(transport.name(), ": ", status.message()));
        }
      }
    }
    Lose(absl::StrCat("no allowed transport works; ", absl::StrJoin(failures_, "; ")));
  }

  absl::Status Test(Transport& transport, const PoolExport& pool) {
    absl::StatusOr<std::unique_ptr<RemotePool>> opened = transport.Open(pool);
    if (!opened.ok()) return opened.status();
    const uint64_t area = peer_hello_.layout.pool_bytes();
    absl::StatusOr<SelfTestResult> result = WriteSelfTest(transport, *hub_.options_.memory, *opened, area);
    if (!result.ok()) return result.status();
    if (absl::Status judged = Judge(transport.name(), result->gigabytes_per_second); !judged.ok()) return judged;
    state_.transport = std::string(transport.name());
    state_.path = (*opened)->path();
    pool_ = *std::move(opened);
    if (faulty()) pool_ = WithFaults(std::move(pool_), *hub_.options_.memory, hub_.options_.faults);
    state_.gigabytes_per_second = result->gigabytes_per_second;
    state_.latency_us = result->latency_us;
    Send(SelfTestDoneMessage{state_.transport, result->large_seed, kLargeTestBytes, result->small_seed, kSmallTestBytes,
                             result->gigabytes_per_second, result->latency_us});
    return absl::OkStatus();
  }

  // FAILED_PRECONDITION: too slow to be what the topology says.
  absl::Status Judge(absl::string_view transport, double gigabytes_per_second) {
    const Options& options = hub_.options_;
    auto expected = options.expected_rates.find(std::string(transport));
    if (expected == options.expected_rates.end()) return absl::OkStatus();
    const double expected_gigabytes = expected->second / 1e9;
    if (gigabytes_per_second >= options.minimum_share * expected_gigabytes) return absl::OkStatus();
    is_too_slow_ = true;
    return absl::FailedPreconditionError(absl::StrCat(
        "too slow: ", gigabytes_per_second, " GB/s in the self-test, under ", options.minimum_share, " of the ",
        expected_gigabytes, " GB/s of links.expected_rate (links.minimum_share: 0 allows it)"));
  }

  void OnReady() {
    if (pool_ == nullptr || sender_ != nullptr) return;
    sender_ = std::make_unique<KvSender>(hub_.options_.hello.layout, peer_hello_.layout, hub_.options_.hello.checksums,
                                         hub_.options_.pool);
    is_too_slow_ = false;  // Another transport serves: a loss of this link is mended at once.
    state_.up = true;
    state_.error = absl::StrJoin(failures_, "; ");
    if (!failures_.empty()) {
      LogWarning("transports passed over", {{"peer", peer_.worker_id}, {"reason", state_.error}});
    }
    LogInfo("link up", {{"peer", peer_.worker_id},
                        {"transport", state_.transport},
                        {"path", state_.path},
                        {"gigabytes_per_second", state_.gigabytes_per_second},
                        {"latency_us", state_.latency_us},
                        {"checksums", hub_.options_.hello.checksums}});
    hub_.events_.OnLinkState(state_);
  }

  void OnRefused(const LinkRefusedMessage& refused) {
    if (refused.must_restart) {
      hub_.events_.OnMustRestart(refused.reason);
      return;
    }
    if (pool_ != nullptr && refused.retryable) {  // This transport failed the peer's check.
      failures_.push_back(absl::StrCat(state_.transport, ": ", refused.reason));
      pool_.reset();
      TryNextTransport();
      return;
    }
    Lose(absl::StrCat("refused: ", refused.reason));
  }

  void Lose(const std::string& reason, bool is_meant = false) {
    if (socket_ == nullptr) return;
    socket_.reset();
    if (sender_ != nullptr) {
      const bool is_alarm = !is_meant && !hub_.leaving_;
      Log(is_alarm ? LogLevel::kWarning : LogLevel::kInfo, is_alarm ? "link lost" : "link closed",
          {{"peer", peer_.worker_id}, {"reason", reason}});
      sender_->LoseAll(reason);
      hub_.Retire(peer_.incarnation, std::move(pool_), sender_->TakeOutcomes());
      sender_.reset();
    }
    pool_.reset();
    // Tests take the peer's test area and this thread's time; another one would hardly find another rate.
    if (std::exchange(is_too_slow_, false)) next_attempt_ = Clock::Real().Now() + kSlowLinkPause;
    Report(reason);
  }

  void Report(const std::string& error) {
    if (!state_.up && state_.error == error) return;  // Said already; attempts go on.
    if (!state_.up) {
      // What was tried and failed will hardly mend itself; a peer that is not there yet will.
      const LogLevel level = failures_.empty() ? LogLevel::kInfo : LogLevel::kWarning;
      Log(level, "link not up yet", {{"peer", peer_.worker_id}, {"reason", error}});
    }
    state_ = {.worker_id = peer_.worker_id, .incarnation = peer_.incarnation, .error = error};
    hub_.events_.OnLinkState(state_);
  }

  bool faulty() const {
    const std::string& peer = hub_.options_.faults.peer;
    return peer.empty() || peer == peer_.worker_id;
  }
  bool drops_acks() const { return faulty() && hub_.options_.faults.drop_acks > 0; }

  SenderHub& hub_;
  const LinkPeer peer_;
  LinkState state_;
  absl::Time next_attempt_ = absl::InfinitePast(), last_heard_;
  std::unique_ptr<FrameSocket> socket_;  // Null: not connected.
  HelloMessage peer_hello_;
  size_t next_transport_ = 0;
  std::vector<std::string> failures_;
  bool is_too_slow_ = false;          // One of them.
  std::unique_ptr<RemotePool> pool_;  // Set while tested or up.
  std::unique_ptr<KvSender> sender_;  // Set while up.
  int64_t heartbeats_ = 0;
};

absl::StatusOr<std::unique_ptr<SenderHub>> SenderHub::Create(Options options,
                                                             std::vector<std::unique_ptr<Transport>> transports,
                                                             SenderEvents& events) {
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  if (!loop.ok()) return loop.status();
  return std::unique_ptr<SenderHub>(new SenderHub(std::move(options), std::move(transports), events, *std::move(loop)));
}

SenderHub::SenderHub(Options options, std::vector<std::unique_ptr<Transport>> transports, SenderEvents& events,
                     std::unique_ptr<EventLoop> loop)
    : options_(std::move(options)), transports_(std::move(transports)), events_(events), loop_(std::move(loop)) {
  for (const auto& transport : transports_) {
    if (transport->event_fd() >= 0) loop_->Watch(transport->event_fd(), EPOLLIN, [](uint32_t) {});
  }
  thread_ = std::thread([this] {
    options_.memory->UseOnThisThread();
    loop_->Run(
        options_.heartbeat, [this] { Tick(); }, [this] { return Poll(); });
    links_.clear();
    retired_.clear();
  });
}

SenderHub::~SenderHub() { Stop(); }

void SenderHub::Stop() {
  loop_->Stop();
  if (thread_.joinable()) thread_.join();
}

void SenderHub::Tick() {
  for (auto& [incarnation, link] : links_) link->Tick(Clock::Real().Now());
}

bool SenderHub::Poll() {
  for (const auto& transport : transports_) transport->Progress();
  bool waiting = SettleRetired();
  for (auto& [incarnation, link] : links_) waiting |= link->Pump();
  for (const auto& transport : transports_) waiting |= !transport->PrepareToSleep();
  return waiting;
}

void SenderHub::Retire(Incarnation peer, std::unique_ptr<RemotePool> pool, std::vector<HandoverOutcome> outcomes) {
  const absl::Duration patience = options_.heartbeat * options_.missed_heartbeats;
  retired_.push_back({peer, std::move(pool), std::move(outcomes), Clock::Real().Now() + patience});
  SettleRetired();
}

bool SenderHub::SettleRetired() {
  std::erase_if(retired_, [&](RetiredPool& retired) {
    absl::StatusOr<bool> flushed = retired.pool->PollFlushed();
    const bool landed = flushed.ok() && *flushed;
    if (flushed.ok() && !landed && Clock::Real().Now() < retired.give_up) return false;
    if (!landed) unsettled_.insert(retired.peer);
    retired.pool.reset();
    for (const HandoverOutcome& outcome : retired.outcomes) events_.OnOutcome(outcome);
    return true;
  });
  return !retired_.empty();
}

bool SenderHub::IsSettling(Incarnation peer) const {
  return std::any_of(retired_.begin(), retired_.end(), [&](const RetiredPool& pool) { return pool.peer == peer; });
}

void SenderHub::SetPeers(std::vector<LinkPeer> peers) {
  loop_->Post([this, peers = std::move(peers)] { ApplyPeers(peers); });
}

void SenderHub::ApplyPeers(const std::vector<LinkPeer>& peers) {
  absl::flat_hash_map<Incarnation, LinkPeer> wanted;
  for (const LinkPeer& peer : peers) wanted[peer.incarnation] = peer;
  absl::erase_if(links_, [&](const auto& entry) {
    auto match = wanted.find(entry.first);
    return match == wanted.end() || match->second != entry.second->peer();
  });
  for (auto& [incarnation, peer] : wanted) {
    auto& link = links_[incarnation];
    if (link == nullptr) {
      link = std::make_unique<Link>(*this, peer);
      link->Tick(Clock::Real().Now());
    }
  }
}

void SenderHub::OnLink(Incarnation peer, absl::AnyInvocable<void(KvSender&)> action,
                       absl::AnyInvocable<void()> without) {
  loop_->Post([this, peer, action = std::move(action), without = std::move(without)]() mutable {
    auto link = links_.find(peer);
    if (link == links_.end() || link->second->sender() == nullptr) {
      without();
      return;
    }
    action(*link->second->sender());
    link->second->Pump();
  });
}

void SenderHub::Start(Incarnation peer, HandoverId handover, std::vector<TokenId> tokens,
                      std::vector<PageIndex> pages) {
  OnLink(
      peer,
      [handover, tokens = std::move(tokens), pages = std::move(pages)](KvSender& sender) mutable {
        sender.Start(handover, std::move(tokens), std::move(pages));
      },
      [this, handover] {
        events_.OnOutcome({.handover = handover,
                           .kind = HandoverOutcome::Kind::kLost,
                           .reason = "the link to the decode worker is down",
                           .error_reason = ErrorReason::kLinkDown});
      });
}

void SenderHub::LayersReady(Incarnation peer, HandoverId handover, IndexRange tokens, IndexRange layers,
                            std::shared_ptr<const SourceEvent> ready) {
  OnLink(peer, [handover, tokens, layers, ready = std::move(ready)](KvSender& sender) {
    sender.LayersReady(handover, tokens, layers, Clock::Real().Now(), ready);
  });
}

void SenderHub::Finish(Incarnation peer, HandoverId handover, TokenId first_token) {
  OnLink(peer, [handover, first_token](KvSender& sender) { sender.Finish(handover, first_token); });
}

void SenderHub::Cancel(Incarnation peer, HandoverId handover, const std::string& reason) {
  OnLink(peer, [handover, reason](KvSender& sender) { sender.Cancel(handover, reason); });
}

}  // namespace tandem
