#pragma once

#include <memory>

#include "common/rpc/session_server.h"

namespace tandem {

// The RPC edge of a prefill worker: tandem.v1.Prefill on top of a session server, which outlives it.
std::unique_ptr<SessionService> NewPrefillService(SessionServer& sessions);

}  // namespace tandem
