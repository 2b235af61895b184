#include "common/rpc/peer_trust.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/cluster_secret.h"
#include "common/rpc/authorization.h"
#include "common/secret.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

bool IsUnixSocket(absl::string_view address) { return absl::StartsWith(address, "unix:"); }

// Of a client's certificates, its own first; empty where it showed none.
std::string ChainOf(const grpc::ServerContext& context) {
  std::string chain;
  const std::shared_ptr<const grpc::AuthContext> shown = context.auth_context();
  if (shown == nullptr) return chain;
  for (const char* property : {GRPC_X509_PEM_CERT_PROPERTY_NAME, GRPC_X509_PEM_CERT_CHAIN_PROPERTY_NAME}) {
    for (const grpc::string_ref& pem : shown->FindPropertyValues(property)) {
      absl::StrAppend(&chain, absl::string_view(pem.data(), pem.size()), "\n");
    }
  }
  return chain;
}

}  // namespace

absl::StatusOr<PeerTrust> ReadPeerTrust(const Topology& topology) {
  PeerTrust trust;
  ASSIGN_OR_RETURN(trust.secret, ReadClusterSecret(topology));
  ASSIGN_OR_RETURN(trust.tls, LoadTls(topology.tls));
  return trust;
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const PeerTrust& trust, const std::string& address,
                                                             Callers callers) {
  if (trust.tls == nullptr || IsUnixSocket(address)) return grpc::InsecureServerCredentials();
  const bool clients_show_none = callers == Callers::kClientsAsWell && trust.tls->client_authorities.empty();
  grpc::SslServerCredentialsOptions options(clients_show_none
                                                ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_key_cert_pairs.push_back({trust.tls->key, trust.tls->certificate});
  options.pem_root_certs = trust.tls->authorities;
  if (callers == Callers::kClientsAsWell) absl::StrAppend(&options.pem_root_certs, "\n", trust.tls->client_authorities);
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity* tls, const std::string& address) {
  if (tls == nullptr || IsUnixSocket(address)) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({tls->authorities, tls->key, tls->certificate});
}

std::optional<grpc::Status> RefusalOfPeer(const grpc::ServerContext& context, const PeerTrust& trust) {
  if (trust.tls != nullptr && !IsUnixSocket(context.peer())) {
    // gRPC takes the clients' authorities as well, for their calls.
    const absl::Status status = CheckProcess(*trust.tls, ChainOf(context), TlsUse::kClient);
    if (!status.ok()) {
      return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                          absl::StrCat("no process of this cluster: its certificate ", status.message()));
    }
  }
  if (!trust.secret.empty() && !IsSameSecret(MetadataOf(context, kPeerSecretKey), trust.secret)) {
    return grpc::Status(
        grpc::StatusCode::UNAUTHENTICATED,
        "the cluster's secret is missing or is another one (cluster.secret_file, or TANDEM_CLUSTER_SECRET; tandem up "
        "draws one where neither is set)");
  }
  return std::nullopt;
}

}  // namespace tandem
