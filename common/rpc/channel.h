#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/tls/tls_identity.h"

namespace tandem {

// A channel to host:port or unix:/path, for use inside a cluster: it finds a peer that was started
// (again) within half a second, shares no connection with other channels, and takes messages of any
// size. `tls`: who this process is, and whom it believes; the other side must have tls->name, or, where that is empty,
// the name or address that is dialled. Null: in the clear.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address, const TlsIdentity* tls);

}  // namespace tandem
