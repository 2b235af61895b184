#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/tls/tls_stream.h"
#include "kvtransfer/event_loop.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

namespace tandem {

// What the hub tells its owner. Called on the link thread; must not block.
class ReceiverEvents {
 public:
  virtual ~ReceiverEvents() = default;
  // A prefill worker wants a link: answer with Accept or Refuse of the same connection.
  virtual void OnHello(int64_t connection, const HelloMessage& hello) = 0;
  virtual void OnPeerUp(const HelloMessage& hello) = 0;
  // `writes_over`: nothing that it wrote can land any more.
  virtual void OnPeerLost(Incarnation peer, bool writes_over) = 0;
  // The process behind a lost link is gone now: its writes are over.
  virtual void OnWritesOver(Incarnation peer) = 0;
  virtual void OnMessage(Incarnation peer, const LinkMessage& message) = 0;
};

// All links of a decode worker, and the thread that owns them: listens, greets, verifies
// self-tests, watches over the peers' lives and passes their messages on.
//
// Thread-safety: thread-safe; calls are posted to the link thread.
// Ownership: owns the thread, connections and transports. Borrows the pool and the events, which
// outlive it.
class ReceiverHub {
 public:
  struct Options {
    HelloMessage hello;                     // Of this worker; exports are added for each link.
    std::string listen;                     // host:port
    std::shared_ptr<const TlsContext> tls;  // Null: in the clear.
    uint8_t* pool = nullptr;                // KV pool, then the test area.
    PoolMemory* memory = &HostMemory();     // Where it lies.
    absl::Duration heartbeat = absl::Milliseconds(250);
    int missed_heartbeats = 4;
  };
  // Makes the memory's device the calling thread's.
  static absl::StatusOr<std::unique_ptr<ReceiverHub>> Create(Options options,
                                                             std::vector<std::unique_ptr<Transport>> transports,
                                                             ReceiverEvents& events);
  ~ReceiverHub();
  // Begins to take links; callbacks may come from now on.
  void Start();
  // Ends the thread and all links; no callback runs after it. Calls are then ignored. Idempotent.
  void Stop();
  // This worker leaves as it was asked to: that links end is no alarm any more.
  void SetLeaving() { leaving_ = true; }

  int port() const { return port_; }
  void Accept(int64_t connection);
  void Refuse(int64_t connection, const LinkRefusedMessage& refusal);
  // Dropped when the peer's link is down.
  void Send(Incarnation peer, LinkMessage message);

 private:
  class Connection;
  ReceiverHub(Options options, std::vector<std::unique_ptr<Transport>> transports, ReceiverEvents& events,
              std::unique_ptr<EventLoop> loop, int listener_fd, int port);
  // Of the KV pool and the test area.
  uint64_t pool_bytes() const;
  void AcceptAll();
  void Tick();
  bool Poll();
  // Lets the next accepted connection use the test area.
  void StartNextTest();
  // Frees connections that were closed; not inside their own callbacks.
  void SweepClosed();
  void WatchProcess(Incarnation peer, int64_t pid);

  Options options_;
  const std::vector<std::unique_ptr<Transport>> transports_;
  ReceiverEvents& events_;
  const std::unique_ptr<EventLoop> loop_;
  const int listener_fd_, port_;
  std::atomic<bool> leaving_ = false;
  // Link thread only.
  absl::flat_hash_map<int64_t, std::unique_ptr<Connection>> connections_;
  absl::flat_hash_map<Incarnation, int> process_fds_;  // pidfds of linked and lost peers of this host.
  int64_t next_connection_ = 1;
  int64_t testing_ = 0;  // The connection that uses the test area; 0: none.
  std::vector<int64_t> test_queue_;
  std::thread thread_;
};

}  // namespace tandem
