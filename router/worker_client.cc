#include "router/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "common/rpc/channel.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/frame_codec.h"
#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

// The stream itself, which gRPC may need for longer than the client lives.
//
// Thread-safety: the owner thread only, which is the loop's.
// Ownership: shared by the client and gRPC; borrows the core, which it tells nothing after End.
class CommandStream final : public ClientStream<v1::CommandFrame, v1::EventFrame> {
 public:
  CommandStream(Incarnation worker, RouterCore& core) : worker_(worker), core_(core) {}

  // Nothing is told to the core any more.
  void End() {
    ended_ = true;
    Cancel();
  }

 private:
  void OnMessage(v1::EventFrame& frame) override {
    if (!ended_) core_.OnWorkerEvents(worker_, DecodeEvents(frame));
  }
  void OnReadsEnded() override {
    if (!ended_) core_.OnWorkerSession(worker_, false);
  }
  void OnClosed(const grpc::Status&) override {}

  const Incarnation worker_;
  RouterCore& core_;
  bool ended_ = false;
};

// Cancels the stream with its end.
class GrpcWorkerClient final : public WorkerClient {
 public:
  GrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core, CompletionLoop& loop)
      : stream_(std::make_shared<CommandStream>(registration.incarnation, core)) {
    // A channel of its own: another incarnation at the same address must not inherit the connection.
    auto channel = NewChannel(registration.service_address, loop.trust().tls.get());
    stream_->Start(loop, [&](auto... arguments) {
      return registration.role == Role::kPrefill ? v1::Prefill::NewStub(channel)->PrepareAsyncSession(arguments...)
                                                 : v1::Decode::NewStub(channel)->PrepareAsyncSession(arguments...);
    });
    // Commands wait in the stream until it is connected; a worker that cannot be reached ends it.
    core.OnWorkerSession(registration.incarnation, true);
  }
  ~GrpcWorkerClient() override { stream_->End(); }
  void Send(const CommandFrame& frame) override {
    stream_->Send([&](v1::CommandFrame& out) { EncodeCommands(frame, &out); });
  }

 private:
  const std::shared_ptr<CommandStream> stream_;
};

}  // namespace

std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core,
                                                  CompletionLoop& loop) {
  return std::make_unique<GrpcWorkerClient>(registration, core, loop);
}

}  // namespace tandem
