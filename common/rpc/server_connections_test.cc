#include "common/rpc/server_connections.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc/server_runner.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using testing::HasSubstr;

// Both ends of a TCP connection on this machine.
class TcpPair {
 public:
  TcpPair() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    bind(listener, reinterpret_cast<sockaddr*>(&address), size);
    listen(listener, 1);
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
    client_ = socket(AF_INET, SOCK_STREAM, 0);
    connect(client_, reinterpret_cast<sockaddr*>(&address), size);
    server_ = accept(listener, nullptr, nullptr);
    const int on = 1;
    setsockopt(server_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    close(listener);
  }
  ~TcpPair() {
    close(client_);
    close(server_);
  }
  int server() const { return server_; }
  void WriteTokens(int count) {
    for (int i = 0; i < count; ++i) ASSERT_EQ(send(server_, "token", 5, 0), 5);
  }
  // With data in them, sent by the server.
  uint32_t segments() const {
    tcp_info info{};
    socklen_t size = sizeof(info);
    getsockopt(server_, IPPROTO_TCP, TCP_INFO, &info, &size);
    return info.tcpi_data_segs_out;
  }
  std::string Take(size_t bytes) const {
    std::string taken(bytes, ' ');
    recv(client_, taken.data(), bytes, MSG_WAITALL);
    return taken;
  }

 private:
  int client_ = -1, server_ = -1;
};

TEST(TurnHoldTest, WhatATurnWritesLeavesInOnePieceAtItsEnd) {
  TcpPair pair;
  auto connection = std::make_shared<ServerConnection>(ServerConnection{.socket = pair.server(), .calls = 3});
  TurnHold hold;
  // The kernel itself lets go after 200 ms, for which this thread may stand still.
  bool was_quick = false;
  for (int i = 0; !was_quick && i < 20; ++i) {
    const uint32_t before = pair.segments();
    const absl::Time begin = absl::Now();
    hold.Hold(connection);
    pair.WriteTokens(3);
    hold.Hold(connection);  // Once more in the same turn.
    const uint32_t held = pair.segments();
    was_quick = absl::Now() - begin < absl::Milliseconds(100);
    if (was_quick) {
      EXPECT_EQ(held, before);
    }
    hold.EndTurn();
    EXPECT_EQ(pair.Take(15), "tokentokentoken");
    if (was_quick) {
      EXPECT_EQ(pair.segments(), before + 1);
    }
  }
  ASSERT_TRUE(was_quick);
  // What is written outside of a turn waits for nothing.
  const uint32_t before = pair.segments();
  pair.WriteTokens(1);
  EXPECT_EQ(pair.segments(), before + 1);
  EXPECT_EQ(pair.Take(5), "token");
}

TEST(TurnHoldTest, AConnectionWithOneCallIsNotHeld) {
  TcpPair pair;
  auto connection = std::make_shared<ServerConnection>(ServerConnection{.socket = pair.server(), .calls = 1});
  TurnHold hold;
  hold.Hold(connection);
  pair.WriteTokens(1);
  EXPECT_EQ(pair.segments(), 1u);
  EXPECT_EQ(pair.Take(5), "token");
  hold.EndTurn();
}

TEST(TurnHoldTest, ASocketThatWasClosedInTheTurnHarmsNothing) {
  TurnHold hold;
  auto pair = std::make_unique<TcpPair>();
  const auto gone = std::make_shared<ServerConnection>(ServerConnection{.socket = pair->server(), .calls = 2});
  hold.Hold(gone);
  pair.reset();
  TcpPair next;  // Takes the same descriptors.
  ASSERT_EQ(next.server(), gone->socket);
  const auto connection = std::make_shared<ServerConnection>(ServerConnection{.socket = next.server(), .calls = 2});
  hold.Hold(connection);
  next.WriteTokens(2);
  hold.EndTurn();  // Lets go of both, which are one socket.
  const uint32_t sent = next.segments();
  EXPECT_GT(sent, 0u);
  next.WriteTokens(1);
  EXPECT_EQ(next.segments(), sent + 1);  // Nothing is held any more.
  EXPECT_EQ(next.Take(15), "tokentokentoken");
  EXPECT_FALSE(gone->is_held || connection->is_held);
}

// A TCP client of a server at 127.0.0.1 or ::1.
class Client {
 public:
  explicit Client(int port, int family = AF_INET) : socket_(socket(family, SOCK_STREAM, 0)) {
    sockaddr_in four{};
    four.sin_family = AF_INET;
    four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    four.sin_port = htons(static_cast<uint16_t>(port));
    sockaddr_in6 six{};
    six.sin6_family = AF_INET6;
    six.sin6_addr = in6addr_loopback;
    six.sin6_port = four.sin_port;
    const bool is_four = family == AF_INET;
    connected_ = connect(socket_, is_four ? reinterpret_cast<sockaddr*>(&four) : reinterpret_cast<sockaddr*>(&six),
                         is_four ? sizeof(four) : sizeof(six)) == 0;
  }
  ~Client() { close(socket_); }
  bool connected() const { return connected_; }
  int port() const {
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    getsockname(socket_, reinterpret_cast<sockaddr*>(&own), &size);
    return ntohs(reinterpret_cast<sockaddr_in&>(own).sin_port);  // At the same place in both families.
  }
  // Blocks until the server says something: its HTTP/2 settings.
  bool IsServed() const {
    char byte = 0;
    return recv(socket_, &byte, 1, 0) == 1;
  }

 private:
  const int socket_;
  bool connected_ = false;
};

// Told without the code under test, whose failure must not look like a machine without IPv6.
bool HasIPv6() {
  const int probe = socket(AF_INET6, SOCK_STREAM, 0);
  if (probe < 0) return false;
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  const bool has = bind(probe, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(probe);
  return has;
}

TEST(ServerConnectionsTest, FindsAConnectionByThePeerThatACallNames) {
  ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("127.0.0.1:0", {}));
  server->StartThread();
  const ServerConnections& connections = *server->connections();
  Client one(connections.port()), other(connections.port());
  ASSERT_TRUE(one.IsServed() && other.IsServed());
  const auto of_one = connections.Find(absl::StrCat("ipv4:127.0.0.1:", one.port()));
  const auto of_other = connections.Find(absl::StrCat("ipv4:127.0.0.1:", other.port()));
  ASSERT_NE(of_one, nullptr);
  ASSERT_NE(of_other, nullptr);
  EXPECT_NE(of_one->socket, of_other->socket);
  EXPECT_EQ(connections.Find("ipv4:127.0.0.1:1"), nullptr);
  EXPECT_EQ(connections.Find("unix:"), nullptr);
}

TEST(ServerConnectionsTest, AnIPv6PeerIsFoundAsGrpcWritesIt) {
  if (!HasIPv6()) GTEST_SKIP() << "no IPv6 here";
  ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("[::1]:0", {}));
  server->StartThread();
  const ServerConnections& connections = *server->connections();
  Client client(connections.port(), AF_INET6);
  ASSERT_TRUE(client.IsServed());
  EXPECT_NE(connections.Find(absl::StrCat("ipv6:%5B::1%5D:", client.port())), nullptr);
}

TEST(ServerConnectionsTest, AServerAtLocalhostIsReachedByItsAddress) {
  ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("localhost:0", {}));
  server->StartThread();
  EXPECT_THAT(server->address(), HasSubstr("localhost:"));
  Client client(server->connections()->port());
  EXPECT_TRUE(client.IsServed());
}

TEST(ServerConnectionsTest, WildcardsAreEveryAddressOfTheirFamilies) {
  for (const char* address : {"0.0.0.0:0", "[::]:0"}) {
    if (!HasIPv6() && absl::StrContains(address, "::")) continue;
    auto server = ServerRunner::Start(address, {});
    ASSERT_THAT(server, IsOk()) << address;
    (*server)->StartThread();
    const ServerConnections& connections = *(*server)->connections();
    Client client(connections.port());
    ASSERT_TRUE(client.IsServed()) << address;
    EXPECT_NE(connections.Find(absl::StrCat("ipv4:127.0.0.1:", client.port())), nullptr) << address;
  }
}

TEST(ServerConnectionsTest, AnAddressOfANameThatIsTakenIsAnError) {
  ASSERT_OK_AND_ASSIGN(auto taken, ServerConnections::Listen("127.0.0.1:0"));
  EXPECT_THAT(ServerConnections::Listen(absl::StrCat("localhost:", taken->port())),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("in use")));
}

TEST(ServerConnectionsTest, AfterShutdownNobodyIsAccepted) {
  ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("127.0.0.1:0", {}));
  server->StartThread();
  const int port = server->connections()->port();
  server->Shutdown(absl::ZeroDuration());
  EXPECT_FALSE(Client(port).connected());
}

TEST(ServerConnectionsTest, BadAddressesAreRefusedWithAReason) {
  EXPECT_THAT(ServerConnections::Listen("7400"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host:port")));
  EXPECT_THAT(ServerRunner::Start("no.such.host.invalid:0", {}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot listen on no.such.host.invalid:0")));
}

}  // namespace
}  // namespace tandem
