#include "router/generate_service.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/rpc/frame_codec.h"
#include "common/rpc/status_codec.h"
#include "tandem/v1/router.grpc.pb.h"

namespace tandem {
namespace {

void EncodeDuration(absl::Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::ToInt64Seconds(duration));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration % absl::Seconds(1))));
}

v1::FinishReason EncodeFinish(RequestFinish finish) {
  switch (finish) {
    case RequestFinish::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case RequestFinish::kStop:
      return v1::FINISH_REASON_STOP;
    case RequestFinish::kLength:
      return v1::FINISH_REASON_LENGTH;
    case RequestFinish::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void EncodeUsage(const RequestUsage& usage, v1::Usage* proto) {
  proto->set_prompt_tokens(usage.prompt_tokens);
  proto->set_completion_tokens(usage.completion_tokens);
  proto->set_cached_tokens(usage.cached_tokens);
  proto->set_retries(usage.retries);
  proto->set_prefill_worker(usage.prefill_worker);
  proto->set_decode_worker(usage.decode_worker);
  EncodeDuration(usage.stages.queue, proto->mutable_stages()->mutable_queue());
  EncodeDuration(usage.stages.prefill, proto->mutable_stages()->mutable_prefill());
  EncodeDuration(usage.stages.transfer, proto->mutable_stages()->mutable_transfer());
  EncodeDuration(usage.stages.handover, proto->mutable_stages()->mutable_handover());
  EncodeDuration(usage.stages.decode, proto->mutable_stages()->mutable_decode());
}

RawRequest ToRaw(const v1::GenerateRequest& proto) {
  RawRequest raw;
  raw.name = proto.request_id();
  raw.model = proto.model();
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      raw.prompt = proto.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      raw.prompt =
          std::vector<TokenId>(proto.token_ids().ids().begin(), proto.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat: {
      std::vector<ChatMessage> messages;
      for (const v1::ChatMessage& message : proto.chat().messages())
        messages.push_back({message.role(), message.content()});
      raw.prompt = std::move(messages);
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  raw.sampling = DecodeSampling(proto.sampling());
  raw.has_seed = proto.sampling().has_seed();
  raw.stops.assign(proto.sampling().stop().begin(), proto.sampling().stop().end());
  raw.priority = proto.priority();
  raw.num_samples = proto.n();
  return raw;
}

// One Generate call. Updates that come while a write is in flight are merged per sample into the
// next messages, so a client that reads slowly costs the memory of its output and no more.
//
// Ownership: the reactor is gRPC's until OnDone, then gone; the sink that the core holds outlives
// it.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public ResponseSink {
 public:
  GenerateCall(RouterCore& core, Gate& gate) : core_(core), gate_(gate) {}

  // `self` keeps the call alive until gRPC and the core are done with it.
  void Begin(std::shared_ptr<GenerateCall> self, absl::StatusOr<Request> request,
             absl::Time arrival, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_) {
    self_ = self;
    if (!request.ok()) {
      Finish(request.status(), {});
      return;
    }
    auto shared = std::make_shared<Request>(*std::move(request));
    shared->arrival = arrival;
    shared->deadline = deadline;
    shared->sink = std::move(self);
    {
      absl::MutexLock lock(&mu_);
      name_ = shared->name;
      request_ = shared.get();
    }
    core_.Submit(std::move(shared));
  }

  // ResponseSink.
  void Write(SampleUpdate update) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    v1::GenerateResponse* target = nullptr;
    if (!pending_.empty() && pending_.back().index() == update.index &&
        pending_.back().finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
      target = &pending_.back();
    } else {
      target = &pending_.emplace_back();
      target->set_index(update.index);
    }
    target->mutable_text()->append(update.text);
    for (const SampledToken& token : update.tokens) EncodeToken(token, target->add_tokens());
    target->set_finish_reason(EncodeFinish(update.finish));
    WriteNextLocked();
  }
  void Finish(const absl::Status& status, const RequestUsage& usage) override
      ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    request_ = nullptr;
    if (finished_) return;
    final_status_ = ToGrpc(status);
    if (status.ok()) {
      if (pending_.empty()) pending_.emplace_back();
      EncodeUsage(usage, pending_.back().mutable_usage());
    } else {
      pending_.clear();
    }
    WriteNextLocked();
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (ok) {
      WriteNextLocked();
    } else {
      FinishLocked(grpc::Status::CANCELLED);
    }
  }
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_) {
    const Request* request;
    {
      absl::MutexLock lock(&mu_);
      request = request_;
    }
    if (request != nullptr) core_.CancelCall(request);
    absl::MutexLock lock(&mu_);
    FinishLocked(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    gate_.Leave();
    self_.reset();  // May destroy this.
  }

 private:
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (pending_.empty()) {
      if (final_status_.has_value()) FinishLocked(*final_status_);
      return;
    }
    outgoing_ = std::move(pending_.front());
    pending_.erase(pending_.begin());
    if (!std::exchange(name_told_, true)) outgoing_.set_request_id(name_);
    if (pending_.empty() && final_status_.has_value() && final_status_->ok()) {
      // The last message and the end go out together.
      finished_ = true;
      StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), *final_status_);
      return;
    }
    writing_ = true;
    StartWrite(&outgoing_);
  }
  void FinishLocked(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (std::exchange(finished_, true)) return;
    grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(status);
  }

  RouterCore& core_;
  Gate& gate_;
  // Co-owners: gRPC until OnDone, the core until the call's end.
  std::shared_ptr<GenerateCall> self_;
  absl::Mutex mu_;
  const Request* request_ ABSL_GUARDED_BY(mu_) = nullptr;  // While the core knows it.
  std::string name_ ABSL_GUARDED_BY(mu_);
  v1::GenerateResponse outgoing_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::GenerateResponse> pending_ ABSL_GUARDED_BY(mu_);
  std::optional<grpc::Status> final_status_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false, finished_ ABSL_GUARDED_BY(mu_) = false,
                name_told_ ABSL_GUARDED_BY(mu_) = false;
};

void EncodeView(const ClusterView& view, int64_t active, v1::ClusterStatusResponse* response) {
  response->set_ready(view.Ready());
  response->set_active_requests(static_cast<int32_t>(active));
  for (const auto& [incarnation, worker] : view.workers()) {
    v1::WorkerStatus* status = response->add_workers();
    status->set_worker_id(worker.registration.worker_id);
    status->set_role(std::string(RoleName(worker.registration.role)));
    status->set_state(worker.session_up ? worker.heartbeat.state : "connecting");
    status->set_running_requests(worker.heartbeat.running_requests);
    status->set_waiting_requests(worker.heartbeat.waiting_requests);
    status->set_free_pages(worker.heartbeat.free_pages);
    status->set_total_pages(worker.registration.total_pages);
    for (const auto& [state, count] : worker.heartbeat.pages)
      (*status->mutable_pages())[state] = count;
    for (const LinkReport& link : worker.heartbeat.links) {
      v1::LinkStatus* out = response->add_links();
      out->set_prefill_worker(worker.registration.worker_id);
      out->set_decode_worker(link.peer_worker);
      out->set_transport(link.transport);
      out->set_gigabytes_per_second(link.gigabytes_per_second);
      out->set_latency_us(link.latency_us);
      out->set_up(link.up);
    }
  }
}

class GenerateService final : public v1::Router::CallbackService {
 public:
  GenerateService(const GenerateServiceOptions& options, const RequestBuilder& builder,
                  RouterCore& core, Gate& gate, const Clock& clock)
      : options_(options), builder_(builder), core_(core), gate_(gate), clock_(clock) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* proto) override {
    const absl::Time arrival = clock_.Now();
    auto call = std::make_shared<GenerateCall>(core_, gate_);
    const bool entered = gate_.Enter();
    absl::Time deadline = absl::InfiniteFuture();
    if (context->deadline() != std::chrono::system_clock::time_point::max()) {
      deadline = arrival + (absl::FromChrono(context->deadline()) - absl::Now());
    }
    absl::StatusOr<Request> request = entered
                                          ? builder_.Build(ToRaw(*proto))
                                          : absl::UnavailableError("the router is shutting down");
    GenerateCall* reactor = call.get();
    call->Begin(std::move(call), std::move(request), arrival, deadline);
    return reactor;
  }

  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::CancelRequest* request, v1::CancelResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    core_.CancelByName(request->request_id(),
                       [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
    return reactor;
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    v1::ModelCard* card = response->add_models();
    card->set_name(options_.served_name);
    card->set_max_context_tokens(options_.max_context_tokens);
    card->set_vocabulary_size(options_.vocabulary_size);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* ClusterStatus(grpc::CallbackServerContext* context,
                                          const v1::ClusterStatusRequest*,
                                          v1::ClusterStatusResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    core_.ReadState([reactor, response](const ClusterView& view, int64_t active) {
      EncodeView(view, active, response);
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

 private:
  const GenerateServiceOptions options_;
  const RequestBuilder& builder_;
  RouterCore& core_;
  Gate& gate_;
  const Clock& clock_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewGenerateService(const GenerateServiceOptions& options,
                                                  const RequestBuilder& builder, RouterCore& core,
                                                  Gate& gate, const Clock& clock) {
  return std::make_unique<GenerateService>(options, builder, core, gate, clock);
}

}  // namespace tandem
