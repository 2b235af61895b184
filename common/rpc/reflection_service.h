#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "common/rpc/completion_loop.h"

namespace tandem {

// grpc.reflection.v1alpha.ServerReflection over the message types that are linked into this program.
//
// Thread-safety: Start once, when the server runs; the rest is the loop's.
// Ownership: borrows the loop; streams end before it is shut down.
class ReflectionService {
 public:
  // `services`: full names of what is listed.
  static std::unique_ptr<ReflectionService> Create(std::vector<std::string> services);
  virtual ~ReflectionService() = default;
  virtual grpc::Service* service() = 0;
  virtual void Start(CompletionLoop& loop) = 0;
};

}  // namespace tandem
