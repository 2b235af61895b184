#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/completion_loop.h"
#include "common/rpc/server_connections.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace tandem {

class HealthService;
class ReflectionService;

// A service that is served asynchronously, on the runner's loop.
struct HostedService {
  grpc::Service* service;
  std::string full_name;  // As in the .proto file: package and name.
};

// A gRPC server with the health and reflection services, and the loop at which this process waits for all its calls.
//
// Thread-safety: thread-safe after Start.
// Ownership: owns the server and the loop; borrows the services, which outlive it.
class ServerRunner {
 public:
  // `address`: host:port (port 0: any free one) or unix:/path. `trust`: the loop's. UNAVAILABLE when it is taken.
  static absl::StatusOr<std::unique_ptr<ServerRunner>> Start(const std::string& address,
                                                             const std::vector<HostedService>& services,
                                                             PeerTrust trust = {},
                                                             Callers callers = Callers::kProcesses);
  // Shutdown, and, without a thread of its own, the last events of the loop: then the owner must have called Shutdown
  // before, while it handled the loop.
  ~ServerRunner();

  // The address that clients use: with the port in use.
  const std::string& address() const { return address_; }
  CompletionLoop& loop() { return loop_; }
  // Null where the address is a unix socket's.
  const ServerConnections* connections() const { return connections_.get(); }
  // Handles the loop's events on a thread of the runner's own. Without it the caller does.
  void StartThread();
  // Whether the health service says SERVING; it does from the start.
  void SetServing(bool serving);
  // Refuses new calls, lets old ones end for `grace`, cancels the rest. The loop must be handled until it returns.
  void Shutdown(absl::Duration grace);

 private:
  ServerRunner(std::unique_ptr<grpc::Server> server, std::unique_ptr<grpc::ServerCompletionQueue> queue,
               std::unique_ptr<HealthService> health, std::unique_ptr<ReflectionService> reflection,
               std::unique_ptr<ServerConnections> connections, std::string address, PeerTrust trust);
  const std::unique_ptr<HealthService> health_;
  const std::unique_ptr<ReflectionService> reflection_;
  const std::unique_ptr<grpc::Server> server_;
  const std::unique_ptr<ServerConnections> connections_;
  const std::string address_;
  CompletionLoop loop_;
  std::thread thread_;
};

}  // namespace tandem
