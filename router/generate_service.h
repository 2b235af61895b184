#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/gate.h"
#include "router/request_builder.h"
#include "router/router_core.h"

namespace tandem {

// The RPC edge for clients: tandem.v1.Router on top of the core. Parses, checks, tokenises and
// submits on gRPC's threads; the core writes answers from its own. Borrows everything, which
// outlives it.
struct GenerateServiceOptions {
  std::string served_name;
  int max_context_tokens = 0;
  int vocabulary_size = 0;
};
// `gate` counts the calls inside.
std::unique_ptr<grpc::Service> NewGenerateService(const GenerateServiceOptions& options,
                                                  const RequestBuilder& builder, RouterCore& core,
                                                  Gate& gate, const Clock& clock);

}  // namespace tandem
