#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/tls/tls_identity.h"
#include "common/topology.h"

namespace tandem {

// What the processes of a cluster prove each other that they belong together with.
struct PeerTrust {
  std::string secret;                      // Empty: nothing.
  std::shared_ptr<const TlsIdentity> tls;  // Null: connections are in the clear. Unix sockets always are.
};

// Who may connect to a server.
enum class Callers {
  kProcesses,      // Those of the cluster.
  kClientsAsWell,  // Who must show a certificate only where the identity names client_authorities.
};

// Errors as of ReadClusterSecret and LoadTls.
absl::StatusOr<PeerTrust> ReadPeerTrust(const Topology& topology);

// Of a server at `address`.
std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const PeerTrust& trust, const std::string& address,
                                                             Callers callers);
// Of a channel to `address`. Null `tls`: in the clear.
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity* tls, const std::string& address);

// What a call ends with that wants to be one of the cluster's processes and is none.
std::optional<grpc::Status> RefusalOfPeer(const grpc::ServerContext& context, const PeerTrust& trust);

}  // namespace tandem
