#include "common/cluster_secret.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/secret.h"

namespace tandem {

bool IsReachable(absl::string_view address) {
  if (address.empty() || absl::StartsWith(address, "unix:")) return false;
  const bool has_port = address.rfind(':') != absl::string_view::npos && !absl::EndsWith(address, "]");
  const std::string host(has_port ? address.substr(0, address.rfind(':')) : address);
  in_addr four;
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 != IN_LOOPBACKNET;
  return host != "localhost" && host != "[::1]";
}

bool NeedsSecret(const Topology& topology) {
  // Certificates are asked for over TCP only.
  const bool has_certificates = topology.tls.is_set() && !absl::StartsWith(topology.router.listen, "unix:");
  return !topology.cluster_secret.is_set() && !has_certificates && std::getenv(kDrawnSecretVariable) == nullptr;
}

absl::StatusOr<std::string> ReadClusterSecret(const Topology& topology) {
  SecretSource source = topology.cluster_secret;
  std::string where =
      absl::StrCat(source.where, source.env.empty() ? ": cluster.secret_file: " : ": cluster.secret_env: ");
  if (!source.is_set()) {
    if (std::getenv(kDrawnSecretVariable) == nullptr) return std::string();
    source = {.env = kDrawnSecretVariable};
    where = absl::StrCat(kDrawnSecretVariable, ": ");
  }
  absl::StatusOr<std::string> secret = ReadSecret(source);
  if (secret.ok()) return secret;
  return absl::Status(secret.status().code(), absl::StrCat(where, secret.status().message()));
}

}  // namespace tandem
