#include "router/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/rpc/channel.h"
#include "common/rpc/frame_codec.h"
#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

// Lives from Begin until End has returned. Its context holds the channel, and with it gRPC's callback threads: so it
// must be freed by the client's thread, never by a callback.
class CommandStream final : public grpc::ClientBidiReactor<v1::CommandFrame, v1::EventFrame> {
 public:
  CommandStream(Incarnation worker, RouterCore& core) : worker_(worker), core_(core) {}

  void Begin() {
    AddHold();  // Writes come from the owner thread; End() gives it back.
    StartRead(&incoming_);
    StartCall();
  }

  void Send(const CommandFrame& frame) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (ended_) return;
    EncodeCommands(frame, &pending_);
    has_pending_ = true;
    WriteNextLocked();
  }

  // Cancels, and waits for the last callback, which that brings about. None reaches the core any more.
  void End() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      ended_ = true;
    }
    context_.TryCancel();
    RemoveHold();
    done_.WaitForNotification();
  }

  void OnReadInitialMetadataDone(bool) override {}
  void OnReadDone(bool ok) override {
    if (!ok) {
      Tell([&] { core_.OnWorkerSession(worker_, false); });
      return;
    }
    EventFrame frame = DecodeEvents(incoming_);
    Tell([&] { core_.OnWorkerEvents(worker_, std::move(frame)); });
    incoming_.Clear();
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (ok && !ended_) WriteNextLocked();
  }
  void OnDone(const grpc::Status&) override {
    Tell([&] { core_.OnWorkerSession(worker_, false); });
    done_.Notify();
  }

  grpc::ClientContext* context() { return &context_; }

 private:
  template <typename F>
  void Tell(F tell) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (!ended_) tell();
  }
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || !has_pending_) return;
    writing_ = true;
    has_pending_ = false;
    outgoing_.Swap(&pending_);
    pending_.Clear();
    StartWrite(&outgoing_);
  }

  const Incarnation worker_;
  RouterCore& core_;
  grpc::ClientContext context_;
  v1::EventFrame incoming_;
  absl::Notification done_;
  absl::Mutex mu_;
  v1::CommandFrame outgoing_ ABSL_GUARDED_BY(mu_), pending_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false,
                has_pending_ ABSL_GUARDED_BY(mu_) = false, ended_ ABSL_GUARDED_BY(mu_) = false;
};

class GrpcWorkerClient final : public WorkerClient {
 public:
  GrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core)
      : stream_(std::make_unique<CommandStream>(registration.incarnation, core)) {
    // A channel of its own: another incarnation at the same address must not inherit the
    // connection.
    auto channel = NewChannel(registration.service_address);
    if (registration.role == Role::kPrefill) {
      prefill_ = v1::Prefill::NewStub(channel);
      prefill_->async()->Session(stream_->context(), stream_.get());
    } else {
      decode_ = v1::Decode::NewStub(channel);
      decode_->async()->Session(stream_->context(), stream_.get());
    }
    stream_->Begin();
    // Commands wait in the stream until it is connected; a worker that cannot be reached ends it.
    core.OnWorkerSession(registration.incarnation, true);
  }
  ~GrpcWorkerClient() override { stream_->End(); }
  void Send(const CommandFrame& frame) override { stream_->Send(frame); }

 private:
  std::unique_ptr<v1::Prefill::Stub> prefill_;
  std::unique_ptr<v1::Decode::Stub> decode_;
  const std::unique_ptr<CommandStream> stream_;
};

}  // namespace

std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const WorkerRegistration& registration, RouterCore& core) {
  return std::make_unique<GrpcWorkerClient>(registration, core);
}

}  // namespace tandem
