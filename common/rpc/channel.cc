#include "common/rpc/channel.h"

#include <grpcpp/grpcpp.h>

#include "common/rpc/peer_trust.h"

namespace tandem {

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address, const TlsIdentity* tls) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 100);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // No bandwidth probing: its pings cost more than a small message. A large window serves long
  // prompts instead.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4 << 20);
  if (tls != nullptr && !tls->name.empty()) arguments.SetSslTargetNameOverride(tls->name);
  return grpc::CreateCustomChannel(address, ChannelCredentialsOf(tls, address), arguments);
}

}  // namespace tandem
