#include "common/rpc/worker_agent.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/control_codec.h"
#include "tandem/v1/control.grpc.pb.h"

namespace tandem {
namespace {

// A router that takes no report for so long has given this worker up.
constexpr absl::Duration kWritePatience = absl::Seconds(5);
constexpr absl::Duration kLeavePatience = absl::Seconds(1);
constexpr absl::Duration kFirstPause = absl::Milliseconds(100), kLongestPause = absl::Seconds(2);

}  // namespace

// One registration stream. Reads are gRPC's; writes are the agent's thread, one at a time.
class WorkerAgent::Stream final : public grpc::ClientBidiReactor<v1::WorkerReport, v1::RouterDirective> {
 public:
  Stream(v1::Control::Stub& stub, const std::function<void(const RouterDirective&)>& on_directive)
      : on_directive_(on_directive) {
    stub.async()->Register(&context_, this);
    StartRead(&incoming_);
    AddHold();  // Writes come from outside of gRPC's callbacks.
    StartCall();
  }

  // False when the stream ended, or the router takes nothing.
  bool Write(const v1::WorkerReport& report) {
    {
      absl::MutexLock lock(&mu_);
      if (done_ || !write_ok_) return false;
      outgoing_ = report;
      writing_ = true;
    }
    StartWrite(&outgoing_);
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(this, &Stream::WriteFinished), kWritePatience) && write_ok_;
  }

  // Cancels and waits for the end.
  grpc::Status End() {
    context_.TryCancel();
    RemoveHold();
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&done_));
    return status_;
  }
  // Says a last word and that there is no more, and ends when the router has taken it, or was too slow.
  void Leave(const v1::WorkerReport& last) {
    bool can_write;
    {
      absl::MutexLock lock(&mu_);
      can_write = !done_ && write_ok_ && !writing_;
      if (can_write) outgoing_ = last;
    }
    if (can_write) StartWriteLast(&outgoing_, grpc::WriteOptions());
    RemoveHold();
    absl::MutexLock lock(&mu_);
    if (can_write && mu_.AwaitWithTimeout(absl::Condition(&done_), kLeavePatience)) return;
    context_.TryCancel();
    mu_.Await(absl::Condition(&done_));
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      absl::MutexLock lock(&mu_);
      write_ok_ = false;
      return;
    }
    registered_ = true;
    on_directive_(DecodeDirective(incoming_));
    StartRead(&incoming_);
  }
  // The router has answered.
  bool registered() const { return registered_; }
  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    write_ok_ = write_ok_ && ok;
  }
  void OnDone(const grpc::Status& status) override {
    absl::MutexLock lock(&mu_);
    status_ = status;
    done_ = true;
  }

 private:
  bool WriteFinished() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !writing_; }

  const std::function<void(const RouterDirective&)>& on_directive_;
  std::atomic<bool> registered_ = false;
  grpc::ClientContext context_;
  v1::RouterDirective incoming_;
  v1::WorkerReport outgoing_;
  mutable absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false, write_ok_ ABSL_GUARDED_BY(mu_) = true, done_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
};

WorkerAgent::WorkerAgent(Options options) : options_(std::move(options)) {
  thread_ = std::thread([this] { Main(); });
}

WorkerAgent::~WorkerAgent() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

bool WorkerAgent::StopRequested() {
  absl::MutexLock lock(&mu_);
  return stopping_;
}

bool WorkerAgent::Sleep(absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  return !mu_.AwaitWithTimeout(absl::Condition(&stopping_), duration);
}

void WorkerAgent::Main() {
  auto channel = NewChannel(options_.router_address);
  auto stub = v1::Control::NewStub(channel);
  bool said_lost = false;
  absl::Duration pause = kFirstPause;
  while (!StopRequested()) {
    Stream stream(*stub, options_.on_directive);
    v1::WorkerReport report;
    EncodeRegistration(options_.registration, report.mutable_registration());
    bool ok = stream.Write(report), said_registered = false;
    for (bool restart = true; ok; restart = false) {
      report.Clear();
      EncodeHeartbeat(options_.collect(restart), report.mutable_heartbeat());
      ok = stream.Write(report) && Sleep(options_.heartbeat);
      if (stream.registered() && !std::exchange(said_registered, true)) {
        LogInfo("registered", {{"router", options_.router_address}});
        said_lost = false;
        pause = kFirstPause;
      }
    }
    if (StopRequested()) {
      // The router learns how this worker leaves: one that drained is not lost.
      report.Clear();
      EncodeHeartbeat(options_.collect(/*restart=*/false), report.mutable_heartbeat());
      stream.Leave(report);
      break;
    }
    grpc::Status status = stream.End();
    if (!std::exchange(said_lost, true)) {
      LogWarning("no router; dialling again", {{"router", options_.router_address}, {"cause", status.error_message()}});
    }
    Sleep(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace tandem
