#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tls/tls_stream.h"
#include "kvtransfer/event_loop.h"

namespace tandem {

// Length-prefixed frames over one TCP connection, with or without TLS, never blocking.
//
// Thread-safety: the loop's thread only.
// Ownership: owns the descriptor; borrows the loop. Callbacks may destroy the socket.
class FrameSocket {
 public:
  struct Callbacks {
    std::function<void(absl::string_view payload)> on_frame;
    std::function<void(const std::string& reason)> on_closed;  // Once, and not after destruction.
  };
  // Takes over a connected or connecting descriptor. `tls`: null, or of this end.
  FrameSocket(EventLoop& loop, int fd, Callbacks callbacks, const std::shared_ptr<const TlsContext>& tls);
  ~FrameSocket();

  // Starts connecting to "host:port" with a number for a host, or a name in /etc/hosts.
  // UNAVAILABLE.
  static absl::StatusOr<int> Connect(const std::string& address);
  // A listening descriptor and its port.
  struct Listener {
    int fd;
    int port;
  };
  static absl::StatusOr<Listener> Listen(const std::string& address);
  // -1 when nobody waits.
  static int Accept(int listener_fd);

  // Queues one frame. A peer that does not read for long is closed when 256 MiB wait.
  void Send(absl::string_view payload);

 private:
  void OnEvent(uint32_t events);
  // False when the socket was closed (and this object may be gone).
  bool ReadAll();
  bool DeliverFrames();
  void Flush();
  void AwaitEvents();
  // As read and send; with TLS, too, errno is EAGAIN where it has to wait.
  ssize_t ReadSome(char* to, size_t room);
  ssize_t WriteSome(const char* from, size_t size);
  void Close(const std::string& reason);

  EventLoop& loop_;
  const int fd_;
  std::unique_ptr<TlsStream> tls_;  // Null: in the clear.
  Callbacks callbacks_;
  std::string received_, unsent_;
  size_t sent_ = 0;
  bool awaits_write_ = false;                                  // What the loop knows.
  bool read_wants_write_ = false, write_wants_write_ = false;  // Of the last ones that would have blocked.
  // Set false on destruction, so that a loop over frames notices. Co-owners: OnEvent's stack frame.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace tandem
