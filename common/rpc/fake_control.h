#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/server_stream.h"
#include "tandem/v1/control.grpc.pb.h"
#include "tests/support/status_matchers.h"

namespace tandem {

// For tests: a router's Control service that answers nothing, or the registration of each stream, and notes what comes.
//
// Thread-safety: thread-safe.
class FakeControl {
 public:
  static constexpr absl::Duration kPatience = absl::Seconds(20);

  explicit FakeControl(bool answers, PeerTrust trust = {}, Callers callers = Callers::kProcesses) : answers_(answers) {
    auto server =
        ServerRunner::Start("127.0.0.1:0", {{&service_, v1::Control::service_full_name()}}, std::move(trust), callers);
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
    Await();
    server_->StartThread();
  }
  ~FakeControl() { server_.reset(); }
  CompletionLoop& loop() { return server_->loop(); }
  const std::string& address() const { return server_->address(); }
  void EndStreams() {
    absl::MutexLock lock(&mu_);
    for (const auto& stream : streams_) stream->Finish({grpc::StatusCode::ABORTED, "expelled"});
  }
  std::vector<std::string> AwaitReports(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return reports_.size() >= count; };
    mu_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
    return reports_;
  }

 private:
  class Stream final : public ServerStream<v1::WorkerReport, v1::RouterDirective> {
   public:
    explicit Stream(FakeControl& owner) : owner_(owner) {}

   private:
    void OnOpen() override {
      owner_.Await();
      absl::MutexLock lock(&owner_.mu_);
      owner_.streams_.push_back(std::static_pointer_cast<Stream>(shared_from_this()));
    }
    void OnMessage(v1::WorkerReport& report) override {
      if (report.has_registration() && owner_.answers_) Send([](v1::RouterDirective&) {});
      absl::MutexLock lock(&owner_.mu_);
      owner_.reports_.push_back(report.has_registration() ? report.registration().worker_id()
                                                          : report.heartbeat().state());
    }
    FakeControl& owner_;
  };
  void Await() {
    std::make_shared<Stream>(*this)->Await(server_->loop(),
                                           [this](auto... arguments) { service_.RequestRegister(arguments...); });
  }

  const bool answers_;
  v1::Control::AsyncService service_;
  absl::Mutex mu_;
  std::vector<std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> reports_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ServerRunner> server_;
};

}  // namespace tandem
