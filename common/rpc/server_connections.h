#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

struct addrinfo;

namespace grpc::experimental {
class ExternalConnectionAcceptor;
}  // namespace grpc::experimental

namespace tandem {

// A client's TCP connection to a gRPC server, for those who write to it. gRPC owns the socket and closes it when it
// likes: `socket` may be closed, or be another connection's by then. Whoever sets an option does it so that this
// harms neither.
//
// Thread-safety: `socket` from any thread, the rest is the owner thread's, which answers the calls.
// Ownership: shared by the table of connections and the calls.
struct ServerConnection {
  const int socket;
  int calls = 0;         // That are being answered.
  bool is_held = false;  // By TurnHold.
};

// Lets what is written to a connection during a turn of the owner thread leave in one piece. gRPC sends each message
// by itself: a system call, a segment and a wake-up of the client for each stream that a decode step brings a token.
//
// A socket that was closed meanwhile, and its number taken by another one, is held and let go like its predecessor:
// within the same turn.
//
// Thread-safety: the owner thread only.
// Ownership: shares the connections that it holds, until the turn's end.
class TurnHold {
 public:
  // What is written from here on waits for EndTurn; no more than a segment is full. Does nothing where it would not
  // pay: the connection has one call.
  void Hold(const std::shared_ptr<ServerConnection>& connection);
  void EndTurn();

 private:
  std::vector<std::shared_ptr<ServerConnection>> held_;
};

// Accepts a gRPC server's TCP connections, which gRPC would hide: TurnHold needs their sockets.
//
// Thread-safety: Find from any thread; the rest from one thread at a time.
// Ownership: owns the listening sockets and a thread; sockets that were accepted are gRPC's.
class ServerConnections {
 public:
  // Listens at each address of host:port (port 0: any free one). "0.0.0.0" is every address of IPv4, "[::]" of both.
  // INVALID_ARGUMENT: it is no host:port; UNAVAILABLE says why it cannot: one of them is taken, this machine has none
  // of them, ..
  static absl::StatusOr<std::unique_ptr<ServerConnections>> Listen(const std::string& address);
  ~ServerConnections();

  int port() const { return port_; }
  // Hands each connection to the server, which has been started.
  void Serve(std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor);
  // Refuses new connections from here on.
  void Stop();
  // The connection of a call whose context names `peer`; null when it is not known.
  std::shared_ptr<ServerConnection> Find(absl::string_view peer) const;

 private:
  ServerConnections() = default;
  static absl::StatusOr<std::unique_ptr<ServerConnections>> ListenAtAll(const addrinfo& addresses);
  void AcceptUntilStopped();
  void Accept(int listener);
  void Remember(const std::string& peer, int socket);

  std::vector<int> listeners_;
  int port_ = 0;
  int stop_event_ = -1;  // An eventfd that ends the thread.
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::thread thread_;

  mutable absl::Mutex mutex_;
  // What is gone stays until its descriptor is used again: no more entries than descriptors.
  absl::flat_hash_map<std::string, std::shared_ptr<ServerConnection>> by_peer_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<int, std::string> peer_of_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem
