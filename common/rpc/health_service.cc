#include "common/rpc/health_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/unary_method.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace tandem {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthServiceParts final : public HealthService {
 public:
  explicit HealthServiceParts(std::vector<std::string> services) : services_(std::move(services)) {}

  grpc::Service* service() override { return &service_; }
  void Start(CompletionLoop& loop) override;
  void SetServing(bool serving) override ABSL_LOCKS_EXCLUDED(mu_);
  void Close() override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Watch;
  bool Knows(const std::string& name) const {
    return name.empty() || std::find(services_.begin(), services_.end(), name) != services_.end();
  }

  const std::vector<std::string> services_;
  grpc::health::v1::Health::AsyncService service_;
  CompletionLoop* loop_ = nullptr;
  absl::Mutex mu_;
  HealthCheckResponse::ServingStatus state_ ABSL_GUARDED_BY(mu_) = HealthCheckResponse::SERVING;
  absl::flat_hash_set<Watch*> watches_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

// One Watch call. States that change while a write is in flight become one.
//
// Thread-safety: the service's lock guards it all.
// Ownership: keeps itself alive until gRPC reported its last event.
class HealthServiceParts::Watch final {
 public:
  // Waits for the next client.
  static void Await(HealthServiceParts& owner) {
    auto watch = std::make_shared<Watch>(owner);
    watch->self_ = watch;
    watch->context_.AsyncNotifyWhenDone(watch->done_.tag());
    grpc::ServerCompletionQueue* queue = owner.loop_->queue();
    owner.service_.RequestWatch(&watch->context_, &watch->request_, &watch->writer_, queue, queue,
                                watch->requested_.tag());
  }
  explicit Watch(HealthServiceParts& owner) : owner_(owner), use_(*owner.loop_), writer_(&context_) {}

  // Tells the client what it does not know yet. The service's lock is held.
  void Advance() {
    owner_.mu_.AssertHeld();
    if (writing_ || finish_called_) return;
    const bool gone = context_gone_;
    if (gone || owner_.closed_) {
      finish_called_ = true;
      ++open_;
      writer_.Finish(
          gone ? grpc::Status::CANCELLED : grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"),
          finished_.tag());
      return;
    }
    const auto state = owner_.Knows(request_.service()) ? owner_.state_ : HealthCheckResponse::SERVICE_UNKNOWN;
    if (state == told_.status()) return;
    told_.set_status(state);
    writing_ = true;
    ++open_;
    writer_.Write(told_, written_.tag());
  }

 private:
  void OnRequested(bool ok) {
    if (!ok) {  // The server shuts down: there was no client, and OnDone never comes.
      self_.reset();
      return;
    }
    Await(owner_);
    absl::MutexLock lock(&owner_.mu_);
    open_ = 1;  // OnDone.
    owner_.watches_.insert(this);
    Advance();
  }
  void OnWritten(bool) {
    {
      absl::MutexLock lock(&owner_.mu_);
      writing_ = false;
      Advance();
    }
    EndOne();
  }
  void OnFinished(bool) { EndOne(); }
  void OnDone(bool) {
    {
      absl::MutexLock lock(&owner_.mu_);
      context_gone_ = true;
      Advance();
    }
    EndOne();
  }
  // One event less is open; the last one ends the watch.
  void EndOne() {
    {
      absl::MutexLock lock(&owner_.mu_);
      if (--open_ > 0) return;
      owner_.watches_.erase(this);
    }
    self_.reset();  // Destroys this.
  }

  HealthServiceParts& owner_;
  const CompletionLoop::Use use_;
  grpc::ServerContext context_;
  HealthCheckRequest request_;
  grpc::ServerAsyncWriter<HealthCheckResponse> writer_;
  MemberEvent<Watch> requested_{*this, &Watch::OnRequested}, written_{*this, &Watch::OnWritten},
      finished_{*this, &Watch::OnFinished}, done_{*this, &Watch::OnDone};
  std::shared_ptr<Watch> self_;
  int open_ ABSL_GUARDED_BY(owner_.mu_) = 0;  // Events that gRPC will still report.
  HealthCheckResponse told_ ABSL_GUARDED_BY(owner_.mu_);
  bool writing_ ABSL_GUARDED_BY(owner_.mu_) = false, finish_called_ ABSL_GUARDED_BY(owner_.mu_) = false,
                context_gone_ ABSL_GUARDED_BY(owner_.mu_) = false;
};

void HealthServiceParts::Start(CompletionLoop& loop) {
  loop_ = &loop;
  ServeUnary<HealthCheckRequest, HealthCheckResponse>(
      loop, [this](auto... arguments) { service_.RequestCheck(arguments...); },
      [this](const HealthCheckRequest& request, HealthCheckResponse* response, const UnaryDone& done) {
        if (!Knows(request.service())) {
          done({grpc::StatusCode::NOT_FOUND, absl::StrCat("service: \"", request.service(), "\" is not served here")});
          return;
        }
        absl::MutexLock lock(&mu_);
        response->set_status(state_);
        done(grpc::Status::OK);
      });
  Watch::Await(*this);
}

void HealthServiceParts::SetServing(bool serving) {
  absl::MutexLock lock(&mu_);
  state_ = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  for (Watch* watch : watches_) watch->Advance();
}

void HealthServiceParts::Close() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
  for (Watch* watch : watches_) watch->Advance();
}

}  // namespace

std::unique_ptr<HealthService> HealthService::Create(std::vector<std::string> services) {
  return std::make_unique<HealthServiceParts>(std::move(services));
}

}  // namespace tandem
