#pragma once

#include <memory>

#include "kvtransfer/transport.h"

namespace tandem {

// Pools of the same process, by address: for tests, and for clusters inside one process.
std::unique_ptr<Transport> NewLoopbackTransport();

}  // namespace tandem
