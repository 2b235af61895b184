#pragma once

#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/rpc/completion_loop.h"
#include "common/rpc/server_runner.h"
#include "router/api_keys.h"
#include "router/router_core.h"

namespace tandem {

// The registration streams of workers: tandem.v1.Control.
//
// Thread-safety: Start once, when the server runs; the rest on the core's owner thread, which waits at the loop.
// Ownership: outlives the loop, and uses loop and core only while the loop is handled. A stream keeps itself alive
// until gRPC is done with it.
class ControlService {
 public:
  ControlService();
  ~ControlService();
  HostedService hosted();
  // Begins to take registrations.
  void Start(CompletionLoop& loop, RouterCore& core, const ApiKeys& api_keys);

  // As RouterOutside's methods.
  void Direct(Incarnation worker, const RouterDirective& directive);
  void Expel(Incarnation worker, const std::string& reason);
  // Ends all streams, and every new one with its first report.
  void Close();

 private:
  class Service;
  class Registration;
  void AwaitRegistration();

  const std::unique_ptr<Service> service_;
  CompletionLoop* loop_ = nullptr;
  RouterCore* core_ = nullptr;
  const ApiKeys* api_keys_ = nullptr;
  absl::flat_hash_map<Incarnation, Registration*> streams_;
  bool closed_ = false;
};

}  // namespace tandem
