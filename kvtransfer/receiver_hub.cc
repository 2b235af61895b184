#include "kvtransfer/receiver_hub.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvtransfer/frame_socket.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/peer_process.h"
#include "kvtransfer/self_test.h"

namespace tandem {

// One prefill worker's connection: connected -> greeted -> accepted -> testing -> up.
//
// Thread-safety: the link thread only.
class ReceiverHub::Connection {
 public:
  Connection(ReceiverHub& hub, int64_t id, int fd) : hub_(hub), id_(id), last_heard_(Clock::Real().Now()) {
    socket_ = std::make_unique<FrameSocket>(
        *hub_.loop_, fd,
        FrameSocket::Callbacks{.on_frame = [this](absl::string_view payload) { OnFrame(payload); },
                               .on_closed = [this](const std::string& reason) { OnSocketClosed(reason); }},
        hub_.options_.tls);
  }

  bool closed() const { return socket_ == nullptr; }
  bool up() const { return up_ && !closed(); }
  Incarnation peer() const { return hello_.incarnation; }

  void Send(const LinkMessage& message) {
    if (socket_ != nullptr) socket_->Send(EncodeLinkMessage(message));
  }

  void Tick(absl::Time now) {
    if (closed()) return;
    absl::Duration silence_limit = hub_.options_.heartbeat * hub_.options_.missed_heartbeats;
    bool waits_for_test = !up_ && hub_.testing_ != id_;
    if (now - last_heard_ > (waits_for_test ? silence_limit * 10 : silence_limit)) {
      Close(absl::StrCat("nothing heard for ", absl::FormatDuration(now - last_heard_)));
      return;
    }
    if (!up_) return;
    if (const absl::Status status = FindExport(transport_)->status(); !status.ok()) {
      Close(absl::StrCat("its writes cannot be taken: ", status.message()));
      return;
    }
    Send(LinkHeartbeatMessage{hub_.options_.hello.incarnation, ++heartbeats_});
  }

  // Opens the pool to the peer, and says how it may be reached.
  void BeginTest() {
    last_heard_ = Clock::Real().Now();
    HelloMessage hello = hub_.options_.hello;
    for (const auto& transport : hub_.transports_) {
      absl::StatusOr<std::unique_ptr<ExportedPool>> pool = transport->Export(hub_.options_.pool, hub_.pool_bytes());
      if (!pool.ok()) {
        LogWarning("pool not exported", {{"transport", transport->name()}, {"reason", pool.status().message()}});
        continue;
      }
      hello.exports.push_back((*pool)->description());
      exports_.push_back(*std::move(pool));
    }
    Send(hello);
  }

  // One that was refused by TLS is told of by nobody else here.
  void OnSocketClosed(const std::string& reason) {
    if (!up_ && absl::StartsWith(reason, "TLS: ")) LogWarning("link not made", {{"cause", reason}});
    Close(reason);
  }

  void Close(const std::string& reason, bool process_ended = false) {
    if (closed()) return;
    socket_.reset();
    if (hub_.testing_ == id_) hub_.testing_ = 0;
    const ExportedPool* used = FindExport(transport_);
    const bool revoked = used != nullptr && used->revocable();
    exports_.clear();
    if (!up_) return;
    const bool is_alarm = !hub_.leaving_;
    Log(is_alarm ? LogLevel::kWarning : LogLevel::kInfo, is_alarm ? "link lost" : "link closed",
        {{"peer", hello_.worker_id}, {"reason", reason}});
    hub_.events_.OnPeerLost(hello_.incarnation, process_ended || revoked);
  }

 private:
  void OnFrame(absl::string_view payload) {
    if (is_stranger_) return;  // Until it is silent for long enough, or leaves.
    last_heard_ = Clock::Real().Now();
    absl::StatusOr<LinkMessage> message = DecodeLinkMessage(payload);
    if (!message.ok()) {
      Close(std::string(message.status().message()));
      return;
    }
    if (const auto* hello = std::get_if<HelloMessage>(&*message)) {
      OnHello(*hello);
    } else if (const auto* done = std::get_if<SelfTestDoneMessage>(&*message)) {
      OnSelfTestDone(*done);
    } else if (up_ && !std::holds_alternative<LinkHeartbeatMessage>(*message)) {
      hub_.events_.OnMessage(hello_.incarnation, *message);
    }
  }

  void OnHello(const HelloMessage& hello) {
    if (hello_.incarnation.is_set()) return;
    if (!IsOfThisCluster(hub_.options_.hello, hello)) {
      LogWarning("link refused: the cluster's secret is missing or is another one",
                 {{"peer", hello.worker_id.substr(0, 100)}});
      is_stranger_ = true;
      Send(LinkRefusedMessage{.reason = "the cluster's secret is missing or is another one", .retryable = true});
      return;
    }
    hello_ = hello;
    // A process keeps one link: an older one of the same incarnation, or of an earlier life of the
    // same worker, is closed first.
    for (auto& [id, other] : hub_.connections_) {
      if (id != id_ && !other->closed() && other->hello_.worker_id == hello.worker_id) {
        other->Close("the worker opened a new link");
      }
    }
    hub_.events_.OnHello(id_, hello);
  }

  void OnSelfTestDone(const SelfTestDoneMessage& done) {
    if (hub_.testing_ != id_) return;
    if (FindExport(done.transport) == nullptr) {
      LogWarning("link not made: the peer tested what was not offered",
                 {{"peer", hello_.worker_id}, {"transport", done.transport}});
      Close("it tested a transport that was not offered");
      return;
    }
    const uint8_t* area = hub_.options_.pool + hub_.options_.hello.layout.pool_bytes();
    const absl::StatusOr<bool> arrived = VerifySelfTest(*hub_.options_.memory, area, done.large_seed, done.small_seed);
    if (!arrived.ok() || !*arrived) {
      const absl::string_view cause = arrived.ok() ? "other bytes arrived" : arrived.status().message();
      Send(LinkRefusedMessage{.reason = absl::StrCat("self-test over ", done.transport, ": ", cause),
                              .retryable = true});
      return;
    }
    up_ = true;
    transport_ = done.transport;
    // The candidates that do not serve hold buffers, and would let the peer write.
    std::erase_if(exports_, [&](const auto& pool) { return pool->description().transport != transport_; });
    hub_.testing_ = 0;
    if (hello_.host_boot_id == HostId()) hub_.WatchProcess(hello_.incarnation, hello_.pid);
    LogInfo("link up", {{"peer", hello_.worker_id},
                        {"transport", done.transport},
                        {"gigabytes_per_second", done.gigabytes_per_second},
                        {"latency_us", done.latency_us}});
    hub_.events_.OnPeerUp(hello_);
    Send(LinkReadyMessage{done.transport});
  }

  // Null for a transport that was not offered.
  const ExportedPool* FindExport(absl::string_view transport) const {
    for (const auto& pool : exports_) {
      if (pool->description().transport == transport) return pool.get();
    }
    return nullptr;
  }

  ReceiverHub& hub_;
  const int64_t id_;
  std::unique_ptr<FrameSocket> socket_;  // Null: closed.
  HelloMessage hello_;
  bool is_stranger_ = false;                            // Its greeting was refused.
  std::vector<std::unique_ptr<ExportedPool>> exports_;  // From BeginTest on.
  std::string transport_;                               // The peer's choice.
  bool up_ = false;
  absl::Time last_heard_;
  int64_t heartbeats_ = 0;
};

absl::StatusOr<std::unique_ptr<ReceiverHub>> ReceiverHub::Create(Options options,
                                                                 std::vector<std::unique_ptr<Transport>> transports,
                                                                 ReceiverEvents& events) {
  options.memory->UseOnThisThread();
  // Tried once here, so that a transport that cannot work is an error of the start.
  const uint64_t size = options.hello.layout.pool_bytes() + kTestAreaBytes;
  for (const auto& transport : transports) {
    if (absl::StatusOr<std::unique_ptr<ExportedPool>> pool = transport->Export(options.pool, size); !pool.ok()) {
      return absl::Status(pool.status().code(),
                          absl::StrCat("transport ", transport->name(), ": ", pool.status().message()));
    }
  }
  ASSIGN_OR_RETURN(std::unique_ptr<EventLoop> loop, EventLoop::Create());
  ASSIGN_OR_RETURN(FrameSocket::Listener listener, FrameSocket::Listen(options.listen));
  return std::unique_ptr<ReceiverHub>(
      new ReceiverHub(std::move(options), std::move(transports), events, std::move(loop), listener.fd, listener.port));
}

ReceiverHub::ReceiverHub(Options options, std::vector<std::unique_ptr<Transport>> transports, ReceiverEvents& events,
                         std::unique_ptr<EventLoop> loop, int listener_fd, int port)
    : options_(std::move(options)),
      transports_(std::move(transports)),
      events_(events),
      loop_(std::move(loop)),
      listener_fd_(listener_fd),
      port_(port) {}

uint64_t ReceiverHub::pool_bytes() const { return options_.hello.layout.pool_bytes() + kTestAreaBytes; }

void ReceiverHub::Start() {
  loop_->Watch(listener_fd_, EPOLLIN, [this](uint32_t) { AcceptAll(); });
  for (const auto& transport : transports_) {
    if (transport->event_fd() >= 0) loop_->Watch(transport->event_fd(), EPOLLIN, [](uint32_t) {});
  }
  thread_ = std::thread([this] {
    options_.memory->UseOnThisThread();
    loop_->Run(
        options_.heartbeat, [this] { Tick(); }, [this] { return Poll(); });
    connections_.clear();
  });
}

void ReceiverHub::Stop() {
  loop_->Stop();
  if (thread_.joinable()) thread_.join();
}

ReceiverHub::~ReceiverHub() {
  Stop();
  close(listener_fd_);
  for (auto& [peer, fd] : process_fds_) close(fd);
}

void ReceiverHub::AcceptAll() {
  for (int fd; (fd = FrameSocket::Accept(listener_fd_)) >= 0;) {
    int64_t id = next_connection_++;
    connections_[id] = std::make_unique<Connection>(*this, id, fd);
  }
}

void ReceiverHub::Tick() {
  for (auto& [id, connection] : connections_) connection->Tick(Clock::Real().Now());
}

bool ReceiverHub::Poll() {
  for (const auto& transport : transports_) transport->Progress();
  SweepClosed();
  StartNextTest();
  bool again = false;
  for (const auto& transport : transports_) again |= !transport->PrepareToSleep();
  return again;
}

void ReceiverHub::SweepClosed() {
  absl::erase_if(connections_, [](const auto& entry) { return entry.second->closed(); });
}

void ReceiverHub::StartNextTest() {
  while (testing_ == 0 && !test_queue_.empty()) {
    auto connection = connections_.find(test_queue_.front());
    test_queue_.erase(test_queue_.begin());
    if (connection == connections_.end() || connection->second->closed()) continue;
    testing_ = connection->first;
    connection->second->BeginTest();
  }
}

void ReceiverHub::WatchProcess(Incarnation peer, int64_t pid) {
  if (process_fds_.contains(peer)) return;
  int fd = OpenProcessDescriptor(pid);
  if (fd < 0) return;  // Its death cannot be proven: pages it loses stay quarantined until it says AbortDone.
  process_fds_[peer] = fd;
  loop_->Watch(fd, EPOLLIN, [this, peer, fd](uint32_t) {
    process_fds_.erase(peer);
    loop_->Unwatch(fd);
    close(fd);
    bool was_up = false;
    for (auto& [id, connection] : connections_) {
      if (connection->up() && connection->peer() == peer) {
        was_up = true;
        connection->Close("the process ended", /*process_ended=*/true);
      }
    }
    if (!was_up) events_.OnWritesOver(peer);
  });
}

void ReceiverHub::Accept(int64_t connection) {
  loop_->Post([this, connection] { test_queue_.push_back(connection); });
}

void ReceiverHub::Refuse(int64_t connection, const LinkRefusedMessage& refusal) {
  loop_->Post([this, connection, refusal] {
    auto entry = connections_.find(connection);
    if (entry != connections_.end()) entry->second->Send(refusal);
  });
}

void ReceiverHub::Send(Incarnation peer, LinkMessage message) {
  loop_->Post([this, peer, message = std::move(message)] {
    for (auto& [id, connection] : connections_) {
      if (connection->up() && connection->peer() == peer) connection->Send(message);
    }
  });
}

}  // namespace tandem
