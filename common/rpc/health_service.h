#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "common/rpc/completion_loop.h"

namespace tandem {

// grpc.health.v1.Health, for the server as a whole and for each service by name: all in one state.
//
// Thread-safety: thread-safe after Start, which is called once, when the server runs.
// Ownership: borrows the loop; calls end before it is shut down.
class HealthService {
 public:
  // `services`: full names.
  static std::unique_ptr<HealthService> Create(std::vector<std::string> services);
  virtual ~HealthService() = default;
  virtual grpc::Service* service() = 0;
  virtual void Start(CompletionLoop& loop) = 0;
  // Starts as serving. Told to all watchers.
  virtual void SetServing(bool serving) = 0;
  // Ends all watches, and every new one at once.
  virtual void Close() = 0;
};

}  // namespace tandem
