#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/gate.h"
#include "common/rpc/completion_loop.h"
#include "router/request_builder.h"
#include "router/router_core.h"

namespace tandem {

struct GenerateServiceOptions {
  std::string served_name;
  int max_context_tokens = 0;
  int vocabulary_size = 0;
};

// The RPC edge for clients: tandem.v1.Router on top of the core.
//
// Generate calls live on the core's owner thread, which waits on their completion queue: a token
// costs no hop between threads. Long texts are tokenised on a thread of the service. The other
// calls are gRPC callbacks that post.
//
// Thread-safety: Start once, when the server runs; Stop once.
// Ownership: borrows everything, which outlives it.
class GenerateService {
 public:
  // `gate` counts the calls inside.
  static std::unique_ptr<GenerateService> Create(const GenerateServiceOptions& options, const RequestBuilder& builder,
                                                 RouterCore& core, Gate& gate, const Clock& clock);
  virtual ~GenerateService() = default;
  // To register with the server.
  virtual grpc::Service* service() = 0;
  // Begins to take Generate calls from the loop's queue.
  virtual void Start(CompletionLoop& loop) = 0;
  // No text is tokenised any more.
  virtual void Stop() = 0;
};

}  // namespace tandem
