#pragma once

#include <memory>

#include "common/rpc/session_server.h"

namespace tandem {

// The RPC edge of a decode worker: tandem.v1.Decode on top of a session server, which outlives it.
std::unique_ptr<SessionService> NewDecodeService(SessionServer& sessions);

}  // namespace tandem
