#include "common/rpc/worker_agent.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/control_codec.h"
#include "tandem/v1/control.grpc.pb.h"

namespace tandem {
namespace {

// A router that takes no report for so long has given this worker up.
constexpr absl::Duration kWritePatience = absl::Seconds(5);
constexpr absl::Duration kLeavePatience = absl::Seconds(1);
constexpr absl::Duration kFirstPause = absl::Milliseconds(100), kLongestPause = absl::Seconds(2);

}  // namespace

// One registration stream. The agent's thread writes, one report at a time.
class WorkerAgent::Stream final : public ClientStream<v1::WorkerReport, v1::RouterDirective> {
 public:
  explicit Stream(const std::function<void(const RouterDirective&)>& on_directive) : on_directive_(on_directive) {}

  // False when the stream ended, or the router takes nothing.
  bool Write(const v1::WorkerReport& report) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      if (closed_) return false;
      writing_ = true;
    }
    Send([&](v1::WorkerReport& out) { out = report; });
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(this, &Stream::WrittenOrClosed), kWritePatience) && !closed_;
  }
  // Cancels and waits for the end.
  grpc::Status End() ABSL_LOCKS_EXCLUDED(mu_) {
    Cancel();
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&closed_));
    return status_;
  }
  // Says a last word and that there is no more, and ends when the router has taken it, or was too slow.
  void Leave(const v1::WorkerReport& last) ABSL_LOCKS_EXCLUDED(mu_) {
    SendLast([&](v1::WorkerReport& out) { out = last; });
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&closed_), kLeavePatience)) return;
    }
    End();
  }
  // The router has answered.
  bool registered() const { return registered_; }

 private:
  void OnMessage(v1::RouterDirective& directive) override {
    registered_ = true;
    on_directive_(DecodeDirective(directive));
  }
  void OnAllWritten() override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    writing_ = false;
  }
  void OnClosed(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    status_ = status;
    closed_ = true;
  }
  bool WrittenOrClosed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !writing_ || closed_; }

  const std::function<void(const RouterDirective&)>& on_directive_;
  std::atomic<bool> registered_ = false;
  mutable absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false, closed_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
};

WorkerAgent::WorkerAgent(CompletionLoop& loop, Options options) : loop_(loop), options_(std::move(options)) {
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
  auto channel = NewChannel(options_.router_address, loop_.trust().tls.get());
  auto stub = v1::Control::NewStub(channel);
  bool said_lost = false;
  absl::Duration pause = kFirstPause;
  while (!StopRequested()) {
    auto stream = std::make_shared<Stream>(options_.on_directive);
    stream->Start(loop_, [&](auto... arguments) { return stub->PrepareAsyncRegister(arguments...); });
    v1::WorkerReport report;
    EncodeRegistration(options_.registration, report.mutable_registration());
    bool ok = stream->Write(report), said_registered = false;
    for (bool restart = true; ok; restart = false) {
      report.Clear();
      EncodeHeartbeat(options_.collect(restart), report.mutable_heartbeat());
      ok = stream->Write(report) && Sleep(options_.heartbeat);
      if (stream->registered() && !std::exchange(said_registered, true)) {
        LogInfo("registered", {{"router", options_.router_address}});
        said_lost = false;
        pause = kFirstPause;
      }
    }
    if (StopRequested()) {
      // The router learns how this worker leaves: one that drained is not lost.
      report.Clear();
      EncodeHeartbeat(options_.collect(/*restart=*/false), report.mutable_heartbeat());
      stream->Leave(report);
      break;
    }
    grpc::Status status = stream->End();
    if (options_.on_lost) options_.on_lost();
    if (!std::exchange(said_lost, true)) {
      LogWarning("no router; dialling again", {{"router", options_.router_address}, {"cause", status.error_message()}});
    }
    Sleep(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace tandem
