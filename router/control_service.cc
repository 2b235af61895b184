#include "router/control_service.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "common/rpc/authorization.h"
#include "common/rpc/control_codec.h"
#include "common/rpc/server_stream.h"
#include "common/rpc/status_codec.h"
#include "common/rpc/unary_method.h"
#include "tandem/v1/control.grpc.pb.h"

namespace tandem {
namespace {

grpc::Status ShuttingDown() { return {grpc::StatusCode::UNAVAILABLE, "the router is shutting down"}; }

}  // namespace

class ControlService::Service final : public v1::Control::AsyncService {};

// One worker's stream.
//
// Thread-safety: the owner thread only.
// Ownership: as of ServerStream; found in the service's map from its registration until its end.
class ControlService::Registration final : public ServerStream<v1::WorkerReport, v1::RouterDirective> {
 public:
  explicit Registration(ControlService& service) : service_(service) {}

  void Direct(const RouterDirective& directive) {
    // A drain is never taken back; nor is that the worker is to leave for good.
    if (directive.drain) starts_again_ = directive.start_again && (!draining_ || starts_again_);
    draining_ |= directive.drain;
    Send([&](v1::RouterDirective& out) {
      const bool tells_all = out.tell_all() || directive.tell_all;
      out.Clear();  // The newest list replaces one that waits.
      EncodeDirective(directive, &out);
      out.set_tell_all(tells_all);
      out.set_drain(draining_);
      out.set_start_again(starts_again_);
    });
  }

 private:
  void OnOpen() override { service_.AwaitRegistration(); }

  void OnMessage(v1::WorkerReport& report) override {
    if (service_.closed_) {
      Finish(ShuttingDown());
    } else if (report.has_heartbeat() && worker_.is_set()) {
      service_.core_->OnHeartbeat(worker_, DecodeHeartbeat(report.heartbeat()));
    } else if (report.has_registration() && !worker_.is_set()) {
      absl::StatusOr<WorkerRegistration> registration = DecodeRegistration(report.registration());
      if (!registration.ok()) {
        Finish(ToGrpc(registration.status()));
        return;
      }
      worker_ = registration->incarnation;
      service_.streams_[worker_] = this;
      service_.core_->OnRegister(*registration, [&service = service_, worker = worker_](const absl::Status& status) {
        if (!status.ok()) service.Expel(worker, std::string(status.message()));
      });
    }
  }

  void OnClosed() override {
    auto entry = service_.streams_.find(worker_);
    if (entry == service_.streams_.end() || entry->second != this) return;  // Expelled, or replaced.
    service_.streams_.erase(entry);
    service_.core_->OnWorkerGone(worker_, "its registration stream ended");
  }

  ControlService& service_;
  Incarnation worker_;  // Set by its first message.
  bool draining_ = false, starts_again_ = false;
};

ControlService::ControlService() : service_(std::make_unique<Service>()) {}
ControlService::~ControlService() = default;

HostedService ControlService::hosted() { return {service_.get(), v1::Control::service_full_name()}; }

void ControlService::Start(CompletionLoop& loop, RouterCore& core, const ApiKeys& api_keys) {
  api_keys_ = &api_keys;
  loop_ = &loop;
  core_ = &core;
  AwaitRegistration();
  ServeUnary<v1::DrainRequest, v1::DrainResponse>(
      loop, [this](auto... arguments) { service_->RequestDrain(arguments...); },
      [this](const v1::DrainRequest& request, v1::DrainResponse*, UnaryDone done) {
        core_->Drain(request.worker_id(), request.start_again(),
                     [done](const absl::Status& status) { done(ToGrpc(status)); });
      },
      [this](const grpc::ServerContext& context) {
        return ToGrpc(api_keys_->CheckOperator(MetadataOf(context, kApiKeyKey)));
      });
}

void ControlService::AwaitRegistration() {
  std::make_shared<Registration>(*this)->Await(*loop_,
                                               [this](auto... arguments) { service_->RequestRegister(arguments...); });
}

void ControlService::Direct(Incarnation worker, const RouterDirective& directive) {
  auto stream = streams_.find(worker);
  if (stream != streams_.end()) stream->second->Direct(directive);
}

void ControlService::Expel(Incarnation worker, const std::string& reason) {
  auto stream = streams_.find(worker);
  if (stream == streams_.end()) return;
  Registration* expelled = stream->second;
  streams_.erase(stream);
  expelled->Finish(grpc::Status(grpc::StatusCode::ABORTED, reason));
}

void ControlService::Close() {
  closed_ = true;
  for (auto& [worker, stream] : streams_) stream->Finish(ShuttingDown());
  streams_.clear();
}

}  // namespace tandem
