#include "common/rpc/server_runner.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc/health_service.h"
#include "common/rpc/reflection_service.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"

namespace tandem {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
// Of what all connections have sent and nobody has taken yet.
constexpr size_t kMaxMemoryBytes = size_t{1} << 30;
// A peer that does not answer a ping within a timeout is gone, though its connection says nothing.
constexpr int kKeepaliveMs = 60'000, kKeepaliveTimeoutMs = 20'000;

absl::Status CannotListen(absl::string_view address, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerRunner>> ServerRunner::Start(const std::string& address,
                                                                  const std::vector<HostedService>& services,
                                                                  PeerTrust trust, Callers callers) {
  grpc::ServerBuilder builder;
  const auto credentials = ServerCredentialsOf(trust, address, callers);
  const bool is_unix = absl::StartsWith(address, "unix:");
  std::unique_ptr<ServerConnections> connections;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
  if (is_unix) {
    builder.AddListeningPort(address, credentials);
  } else {
    absl::StatusOr<std::unique_ptr<ServerConnections>> listening = ServerConnections::Listen(address);
    if (!listening.ok()) return CannotListen(address, listening.status().message());
    connections = *std::move(listening);
    using Experimental = grpc::ServerBuilder::experimental_type;
    acceptor = builder.experimental().AddExternalConnectionAcceptor(Experimental::ExternalConnectionType::FROM_FD,
                                                                    credentials);
  }
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetResourceQuota(grpc::ResourceQuota("tandem").Resize(kMaxMemoryBytes));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // As the channels of common/rpc/channel.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4 << 20);
  std::vector<std::string> names;
  for (const HostedService& hosted : services) {
    builder.RegisterService(hosted.service);
    names.push_back(hosted.full_name);
  }
  std::unique_ptr<HealthService> health = HealthService::Create(names);
  names.push_back(grpc::health::v1::Health::service_full_name());
  names.push_back(grpc::reflection::v1alpha::ServerReflection::service_full_name());
  std::unique_ptr<ReflectionService> reflection = ReflectionService::Create(std::move(names));
  builder.RegisterService(health->service());
  builder.RegisterService(reflection->service());
  std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return CannotListen(address, "is the address in use?");
  std::string bound = address;
  if (connections != nullptr) {
    bound = absl::StrCat(address.substr(0, address.rfind(':')), ":", connections->port());
    connections->Serve(std::move(acceptor));
  }
  std::unique_ptr<ServerRunner> runner(new ServerRunner(std::move(server), std::move(queue), std::move(health),
                                                        std::move(reflection), std::move(connections), std::move(bound),
                                                        std::move(trust)));
  runner->health_->Start(runner->loop_);
  runner->reflection_->Start(runner->loop_);
  return runner;
}

ServerRunner::ServerRunner(std::unique_ptr<grpc::Server> server, std::unique_ptr<grpc::ServerCompletionQueue> queue,
                           std::unique_ptr<HealthService> health, std::unique_ptr<ReflectionService> reflection,
                           std::unique_ptr<ServerConnections> connections, std::string address, PeerTrust trust)
    : health_(std::move(health)),
      reflection_(std::move(reflection)),
      server_(std::move(server)),
      connections_(std::move(connections)),
      address_(std::move(address)),
      loop_(std::move(queue), std::move(trust)) {}

ServerRunner::~ServerRunner() {
  Shutdown(absl::ZeroDuration());
  loop_.Stop();
  if (thread_.joinable()) {
    thread_.join();
  } else {
    loop_.HandleUntilStopped();
  }
}

void ServerRunner::StartThread() {
  thread_ = std::thread([this] { loop_.HandleUntilStopped(); });
}

void ServerRunner::SetServing(bool serving) { health_->SetServing(serving); }

void ServerRunner::Shutdown(absl::Duration grace) {
  health_->Close();
  if (connections_ != nullptr) connections_->Stop();
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

}  // namespace tandem
