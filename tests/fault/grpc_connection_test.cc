// What the router writes to a gRPC connection that carries several streams.

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tandem/v1/router.grpc.pb.h"
#include "tests/support/replay_cluster.h"

namespace tandem {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// Stands between one client and a server, and sees what the server's kernel sends.
class Wire {
 public:
  explicit Wire(int server_port) {
    sockaddr_in own = Loopback(0);
    socklen_t size = sizeof(own);
    bind(listener_, reinterpret_cast<sockaddr*>(&own), size);
    listen(listener_, 1);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&own), &size);
    port_ = ntohs(own.sin_port);
    const sockaddr_in server = Loopback(server_port);
    EXPECT_EQ(connect(server_, reinterpret_cast<const sockaddr*>(&server), sizeof(server)), 0);
    thread_ = std::thread([this] { Carry(); });
  }
  ~Wire() {
    stopping_ = true;
    shutdown(listener_, SHUT_RDWR);  // Where nobody has come.
    thread_.join();
    for (int socket : {listener_, server_, client_}) close(socket);
  }
  int port() const { return port_; }
  // With data in them, that the server sent so far.
  uint32_t segments() const {
    tcp_info info{};
    socklen_t size = sizeof(info);
    getsockopt(server_, IPPROTO_TCP, TCP_INFO, &info, &size);
    return info.tcpi_data_segs_in;
  }

 private:
  void Carry() {
    client_ = accept(listener_, nullptr, nullptr);
    if (client_ < 0) return;
    pollfd ends[] = {{client_, POLLIN, 0}, {server_, POLLIN, 0}};
    char bytes[64 << 10];
    while (!stopping_) {
      poll(ends, 2, /*timeout=*/20);
      for (int i = 0; i < 2; ++i) {
        if (ends[i].revents == 0) continue;
        const ssize_t size = recv(ends[i].fd, bytes, sizeof(bytes), 0);
        if (size <= 0) {  // Over for both.
          for (const pollfd& end : ends) shutdown(end.fd, SHUT_RDWR);
          return;
        }
        send(ends[1 - i].fd, bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
      }
    }
  }

  const int listener_ = socket(AF_INET, SOCK_STREAM, 0), server_ = socket(AF_INET, SOCK_STREAM, 0);
  int client_ = -1, port_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

int64_t ReadAll(v1::Router::Stub& stub, int tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(504);
  request.mutable_sampling()->set_max_tokens(tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const auto reader = stub.Generate(&context, request);
  v1::GenerateResponse response;
  int64_t read = 0;
  while (reader->Read(&response)) read += response.tokens_size();
  EXPECT_TRUE(reader->Finish().ok());
  return read;
}

TEST(GrpcConnectionTest, AStepsTokensForSeveralStreamsLeaveInOneSegment) {
  constexpr int kStreams = 16, kTokens = 60;
  ReplayCluster cluster({"--token_interval=20ms"});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(cluster.grpc_address().substr(cluster.grpc_address().rfind(':') + 1), &port));
  Wire wire(port);
  const auto stub = v1::Router::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", wire.port()), grpc::InsecureChannelCredentials()));
  EXPECT_EQ(ReadAll(*stub, 1), 1);  // Connected.
  const uint32_t before = wire.segments();
  std::atomic<int64_t> read = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) clients.emplace_back([&] { read += ReadAll(*stub, kTokens); });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(read, kStreams * kTokens);
  // A segment for each step, some for the first tokens and the beginnings, and for what HTTP/2 says beside that.
  EXPECT_LT(wire.segments() - before, kStreams * kTokens / 4);
}

}  // namespace
}  // namespace tandem
