#include "kvtransfer/hello.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/secret.h"
#include "kvtransfer/peer_process.h"
#include "kvtransfer/transport_factory.h"

namespace tandem {

HelloMessage MakeHello(const std::string& worker_id, Incarnation incarnation, const KvLayout& layout,
                       uint64_t model_fingerprint, bool checksums, std::string peer_secret) {
  HelloMessage hello;
  hello.worker_id = worker_id;
  hello.incarnation = incarnation;
  hello.host_boot_id = HostId();
  hello.pid = getpid();
  hello.layout = layout;
  hello.model_fingerprint = model_fingerprint;
  hello.checksums = checksums;
  hello.ucx_version = TransportVersion();
  hello.peer_secret = std::move(peer_secret);
  return hello;
}

bool IsOfThisCluster(const HelloMessage& own, const HelloMessage& other) {
  return own.peer_secret.empty() ? other.peer_secret.empty() : IsSameSecret(other.peer_secret, own.peer_secret);
}

absl::Status CheckHellos(const HelloMessage& prefill, const HelloMessage& decode) {
  const auto differ = [](absl::string_view what, const auto& of_prefill, const auto& of_decode) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": prefill has ", of_prefill, ", decode has ", of_decode));
  };
  if (!IsOfThisCluster(prefill, decode)) {
    return absl::InvalidArgumentError("the cluster's secret is missing or is another one");
  }
  if (prefill.protocol_version != decode.protocol_version) {
    return differ("link protocol version", prefill.protocol_version, decode.protocol_version);
  }
  if (prefill.model_fingerprint != decode.model_fingerprint) {
    return differ("model fingerprint (weights and precision)", prefill.model_fingerprint, decode.model_fingerprint);
  }
  if (prefill.ucx_version != decode.ucx_version) {
    return differ("UCX version", prefill.ucx_version, decode.ucx_version);
  }
  if (prefill.checksums && prefill.layout.token_bytes() % 16 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("checksums need KV rows of a multiple of 16 bytes, not of ",
                                                   prefill.layout.token_bytes(), " (links.checksums: false)"));
  }
  return CheckCompatible(prefill.layout, decode.layout);
}

}  // namespace tandem
