#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "router/router_core.h"

namespace tandem {

// The registration streams of workers: tandem.v1.Control.
//
// Thread-safety: thread-safe.
// Ownership: reactors delete themselves when gRPC is done with them.
class ControlService {
 public:
  ControlService();
  ~ControlService();
  // Before the server starts.
  void SetCore(RouterCore* core) { core_ = core; }
  grpc::Service* service();

  // As RouterOutside's methods.
  void Direct(Incarnation worker, const RouterDirective& directive) ABSL_LOCKS_EXCLUDED(mu_);
  void Expel(Incarnation worker, const std::string& reason) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends all streams.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Service;
  class Registration;
  RouterCore* core_ = nullptr;
  std::unique_ptr<Service> service_;
  absl::Mutex mu_;
  absl::flat_hash_map<Incarnation, Registration*> streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tandem
