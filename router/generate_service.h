#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/gate.h"
#include "common/rpc/completion_loop.h"
#include "common/rpc/server_runner.h"
#include "router/api_keys.h"
#include "router/long_texts.h"
#include "router/request_builder.h"
#include "router/router_core.h"

namespace tandem {

struct GenerateServiceOptions {
  std::string served_name;
  int vocabulary_size = 0;
};

// The RPC edge for clients: tandem.v1.Router on top of the core.
//
// Calls live on the core's owner thread, which waits on their completion queue: a token
// costs no hop between threads.
//
// Thread-safety: Start once, when the server runs.
// Ownership: outlives the loop, and uses it only while it is handled; borrows everything else, which outlives it.
class GenerateService {
 public:
  // `gate` counts the calls inside.
  static std::unique_ptr<GenerateService> Create(const GenerateServiceOptions& options, const ApiKeys& api_keys,
                                                 const RequestBuilder& builder, RouterCore& core, LongTexts& long_texts,
                                                 Gate& gate, const Clock& clock);
  virtual ~GenerateService() = default;
  // To register with the server.
  virtual HostedService hosted() = 0;
  // Begins to take calls from the queue of the server's loop.
  virtual void Start(ServerRunner& server) = 0;
  // Ends calls whose clients have taken nothing for half a minute. To be called again and again, on the owner thread;
  // looks once a second.
  virtual void DropStuckClients() = 0;
};

}  // namespace tandem
