#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace grpc {
class Server;
class Service;
class ServerCompletionQueue;
}  // namespace grpc

namespace tandem {

// A gRPC server with the health and reflection services.
//
// Thread-safety: thread-safe after Start.
// Ownership: owns the server; borrows the services, which outlive it.
class ServerRunner {
 public:
  // `address`: host:port (port 0: any free one) or unix:/path. UNAVAILABLE when it is taken. With
  // `queue`, a completion queue for asynchronous services is left there.
  static absl::StatusOr<std::unique_ptr<ServerRunner>> Start(
      const std::string& address, std::vector<grpc::Service*> services,
      std::unique_ptr<grpc::ServerCompletionQueue>* queue = nullptr);
  ~ServerRunner();

  // The address that clients use: with the port in use.
  const std::string& address() const { return address_; }
  // Whether the health service says SERVING.
  void SetServing(bool serving);
  // Refuses new calls, lets old ones end for `grace`, cancels the rest.
  void Shutdown(absl::Duration grace);

 private:
  ServerRunner(std::unique_ptr<grpc::Server> server, std::string address);
  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
};

}  // namespace tandem
