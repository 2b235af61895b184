#include "router/control_service.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "common/rpc/control_codec.h"
#include "common/rpc/status_codec.h"
#include "tandem/v1/control.grpc.pb.h"

namespace tandem {

// One worker's stream. Locks: its mu_ is taken inside the service's, never the other way.
class ControlService::Registration final : public grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterDirective> {
 public:
  explicit Registration(ControlService& service) : service_(service) {}
  void Begin() { StartRead(&incoming_); }

  void Direct(const RouterDirective& directive) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    pending_ = directive;  // The newest list replaces older ones; a drain is never taken back.
    pending_->drain |= draining_;
    draining_ = pending_->drain;
    WriteNextLocked();
  }

  void FinishWith(const grpc::Status& status) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (std::exchange(finished_, true)) return;
    Finish(status);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      FinishWith(grpc::Status::OK);
      return;
    }
    if (incoming_.has_heartbeat() && worker_.is_set()) {
      service_.core_->OnHeartbeat(worker_, DecodeHeartbeat(incoming_.heartbeat()));
    } else if (incoming_.has_registration() && !worker_.is_set()) {
      absl::StatusOr<WorkerRegistration> registration = DecodeRegistration(incoming_.registration());
      if (!registration.ok()) {
        FinishWith(ToGrpc(registration.status()));
        return;
      }
      worker_ = registration->incarnation;
      {
        absl::MutexLock lock(&service_.mu_);
        service_.streams_[worker_] = this;
      }
      ControlService& service = service_;
      service_.core_->OnRegister(*registration, [&service, worker = worker_](const absl::Status& status) {
        if (!status.ok()) service.Expel(worker, std::string(status.message()));
      });
    }
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!finished_) WriteNextLocked();
  }
  void OnCancel() override { FinishWith(grpc::Status::CANCELLED); }
  void OnDone() override {
    bool current = false;
    if (worker_.is_set()) {
      absl::MutexLock lock(&service_.mu_);
      auto entry = service_.streams_.find(worker_);
      current = entry != service_.streams_.end() && entry->second == this;
      if (current) service_.streams_.erase(entry);
    }
    if (current) service_.core_->OnWorkerGone(worker_, "its registration stream ended");
    delete this;
  }

 private:
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || !pending_.has_value()) return;
    writing_ = true;
    outgoing_.Clear();
    EncodeDirective(*std::exchange(pending_, std::nullopt), &outgoing_);
    StartWrite(&outgoing_);
  }

  ControlService& service_;
  v1::WorkerReport incoming_;
  Incarnation worker_;  // gRPC's callbacks only.
  absl::Mutex mu_;
  v1::RouterDirective outgoing_ ABSL_GUARDED_BY(mu_);
  std::optional<RouterDirective> pending_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false, finished_ ABSL_GUARDED_BY(mu_) = false,
                draining_ ABSL_GUARDED_BY(mu_) = false;
};

class ControlService::Service final : public v1::Control::CallbackService {
 public:
  explicit Service(ControlService& owner) : owner_(owner) {}
  grpc::ServerBidiReactor<v1::WorkerReport, v1::RouterDirective>* Register(grpc::CallbackServerContext*) override {
    auto* registration = new Registration(owner_);
    registration->Begin();
    return registration;
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    owner_.core_->Drain(request->worker_id(),
                        [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
    return reactor;
  }

 private:
  ControlService& owner_;
};

ControlService::ControlService() : service_(std::make_unique<Service>(*this)) {}
ControlService::~ControlService() = default;

grpc::Service* ControlService::service() { return service_.get(); }

void ControlService::Direct(Incarnation worker, const RouterDirective& directive) {
  absl::MutexLock lock(&mu_);
  auto stream = streams_.find(worker);
  if (stream != streams_.end()) stream->second->Direct(directive);
}

void ControlService::Expel(Incarnation worker, const std::string& reason) {
  absl::MutexLock lock(&mu_);
  auto stream = streams_.find(worker);
  if (stream == streams_.end()) return;
  stream->second->FinishWith(grpc::Status(grpc::StatusCode::ABORTED, reason));
  streams_.erase(stream);
}

void ControlService::Close() {
  absl::MutexLock lock(&mu_);
  for (auto& [worker, stream] : streams_) {
    stream->FinishWith(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the router is shutting down"));
  }
  streams_.clear();
}

}  // namespace tandem
