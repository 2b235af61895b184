#include "common/rpc/server_connections.h"

#include <arpa/inet.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

// How long a process that has no descriptor left waits before it tries again.
constexpr int kOutOfDescriptorsMs = 100;
// What was sent and not acknowledged for so long ends a connection; as ServerRunner's keepalive.
constexpr int kUserTimeoutMs = 20'000;

void SetTcpOption(int socket, int option, int value) { setsockopt(socket, IPPROTO_TCP, option, &value, sizeof(value)); }

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// A name may stand for addresses that this machine does not have: IPv6's of localhost.
bool IsNotHere(const absl::Status& status) { return absl::IsNotFound(status); }
absl::Status ListenError(absl::string_view what) {
  const bool is_not_here = errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT;
  const absl::Status status = SystemError(what);
  return is_not_here ? absl::NotFoundError(status.message()) : status;
}

int PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// As gRPC names a peer, but with its brackets as they are.
std::string PeerName(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, host, sizeof(host));
    return absl::StrCat("ipv4:", host, ":", PortOf(address));
  }
  const in6_addr& six = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&six)) {
    inet_ntop(AF_INET, &six.s6_addr[12], host, sizeof(host));
    return absl::StrCat("ipv4:", host, ":", PortOf(address));
  }
  inet_ntop(AF_INET6, &six, host, sizeof(host));
  return absl::StrCat("ipv6:[", host, "]:", PortOf(address));
}

// A listening socket at `where`, with `port` in the place of its own unless that is 0.
absl::StatusOr<int> ListenAt(const addrinfo& where, int port) {
  sockaddr_storage address{};
  std::memcpy(&address, where.ai_addr, where.ai_addrlen);
  if (port != 0) {
    in_port_t& place = address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                                     : reinterpret_cast<sockaddr_in&>(address).sin_port;
    place = htons(static_cast<uint16_t>(port));
  }
  const int listener = socket(where.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener < 0) return ListenError("socket");
  absl::Cleanup close_it = [listener] { close(listener); };
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Where it is every address, it is those of IPv4, too.
  const int off = 0;
  if (where.ai_family == AF_INET6) setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), where.ai_addrlen) != 0) return ListenError("bind");
  if (listen(listener, SOMAXCONN) != 0) return ListenError("listen");
  std::move(close_it).Cancel();
  return listener;
}

}  // namespace

// --- TurnHold ---

void TurnHold::Hold(const std::shared_ptr<ServerConnection>& connection) {
  if (connection == nullptr || connection->calls < 2 || std::exchange(connection->is_held, true)) return;
  SetTcpOption(connection->socket, TCP_CORK, 1);
  held_.push_back(connection);
}

void TurnHold::EndTurn() {
  for (const std::shared_ptr<ServerConnection>& connection : held_) {
    connection->is_held = false;
    SetTcpOption(connection->socket, TCP_CORK, 0);
  }
  held_.clear();
}

// --- ServerConnections ---

absl::StatusOr<std::unique_ptr<ServerConnections>> ServerConnections::ListenAtAll(const addrinfo& addresses) {
  std::unique_ptr<ServerConnections> connections(new ServerConnections);
  absl::Status failed = absl::OkStatus();
  std::set<std::string> seen;  // Some resolvers say an address twice.
  for (const addrinfo* where = &addresses; where != nullptr; where = where->ai_next) {
    if (!seen.emplace(reinterpret_cast<const char*>(where->ai_addr), where->ai_addrlen).second) continue;
    absl::StatusOr<int> listener = ListenAt(*where, connections->port_);
    if (!listener.ok()) {
      failed = absl::UnavailableError(listener.status().message());
      if (!IsNotHere(listener.status())) return failed;
      continue;
    }
    connections->listeners_.push_back(*listener);
    sockaddr_storage bound{};
    socklen_t size = sizeof(bound);
    getsockname(*listener, reinterpret_cast<sockaddr*>(&bound), &size);
    connections->port_ = PortOf(bound);
  }
  if (connections->listeners_.empty()) return failed;
  return connections;
}

absl::StatusOr<std::unique_ptr<ServerConnections>> ServerConnections::Listen(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not host:port"));
  }
  absl::string_view host = absl::string_view(address).substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(std::string(host).c_str(), address.c_str() + colon + 1, &hints, &found);
      error != 0) {
    return absl::UnavailableError(gai_strerror(error));
  }
  absl::Cleanup free_it = [found] { freeaddrinfo(found); };
  // A port that was drawn for one address may be taken at the next.
  constexpr int kDraws = 8;
  absl::StatusOr<std::unique_ptr<ServerConnections>> listening = ListenAtAll(*found);
  const bool draws = address.substr(colon + 1) == "0";
  for (int i = 1; draws && i < kDraws && !listening.ok(); ++i) listening = ListenAtAll(*found);
  if (!listening.ok()) return listening.status();
  std::unique_ptr<ServerConnections> connections = *std::move(listening);
  connections->stop_event_ = eventfd(0, EFD_CLOEXEC);
  if (connections->stop_event_ < 0) return SystemError("eventfd");
  return connections;
}

ServerConnections::~ServerConnections() {
  Stop();
  if (stop_event_ >= 0) close(stop_event_);
}

void ServerConnections::Serve(std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor) {
  acceptor_ = std::move(acceptor);
  thread_ = std::thread([this] { AcceptUntilStopped(); });
}

void ServerConnections::Stop() {
  if (thread_.joinable()) {
    eventfd_write(stop_event_, 1);
    thread_.join();
  }
  for (int listener : std::exchange(listeners_, {})) close(listener);
}

void ServerConnections::AcceptUntilStopped() {
  std::vector<pollfd> waits = {{stop_event_, POLLIN, 0}};
  for (int listener : listeners_) waits.push_back({listener, POLLIN, 0});
  while (true) {
    poll(waits.data(), waits.size(), -1);
    if (waits[0].revents != 0) return;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents != 0) Accept(waits[i].fd);
    }
  }
}

void ServerConnections::Accept(int listener) {
  sockaddr_storage peer{};
  socklen_t size = sizeof(peer);
  const int socket = accept4(listener, reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (socket < 0) {
    const bool is_out_of_something = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    pollfd stop = {stop_event_, POLLIN, 0};
    if (is_out_of_something) poll(&stop, 1, kOutOfDescriptorsMs);
    return;  // Otherwise the client has left already.
  }
  SetTcpOption(socket, TCP_NODELAY, 1);
  SetTcpOption(socket, TCP_USER_TIMEOUT, kUserTimeoutMs);
  Remember(PeerName(peer), socket);
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.listener_fd = listener;
  connection.fd = socket;
  acceptor_->HandleNewConnection(&connection);
}

void ServerConnections::Remember(const std::string& peer, int socket) {
  auto connection = std::make_shared<ServerConnection>(ServerConnection{.socket = socket});
  absl::MutexLock lock(&mutex_);
  std::string& peer_of_socket = peer_of_[socket];
  if (auto old = by_peer_.find(peer_of_socket); old != by_peer_.end() && old->second->socket == socket) {
    by_peer_.erase(old);
  }
  peer_of_socket = peer;
  by_peer_[peer] = std::move(connection);
}

std::shared_ptr<ServerConnection> ServerConnections::Find(absl::string_view peer) const {
  const std::string name = absl::StrReplaceAll(peer, {{"%5B", "["}, {"%5D", "]"}});
  absl::MutexLock lock(&mutex_);
  const auto found = by_peer_.find(name);
  return found == by_peer_.end() ? nullptr : found->second;
}

}  // namespace tandem
