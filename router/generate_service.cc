#include "router/generate_service.h"

#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/rpc/authorization.h"
#include "common/rpc/frame_codec.h"
#include "common/rpc/status_codec.h"
#include "common/rpc/unary_method.h"
#include "router/generate_codec.h"
#include "tandem/v1/router.grpc.pb.h"

namespace tandem {
namespace {

using RouterService = v1::Router::AsyncService;

class GenerateCall;

// As HttpServer::Options has it for HTTP.
constexpr size_t kMaxPendingBytes = 1 << 20;
constexpr absl::Duration kWriteTimeout = absl::Seconds(30);
constexpr absl::Duration kBetweenLooks = absl::Seconds(1);

// What a token takes about, and each alternative of it.
constexpr size_t kTokenBytes = 32;

// What all Generate calls share.
struct GenerateShared {
  RouterService& service;
  const ApiKeys& api_keys;
  const RequestBuilder& builder;
  RouterCore& core;
  Gate& gate;
  const Clock& clock;
  LongTexts& long_texts;
  CompletionLoop* loop = nullptr;                  // The server's, once it has started.
  const ServerConnections* connections = nullptr;  // Likewise; null for a unix socket.
  absl::flat_hash_set<GenerateCall*> calls = {};   // Those with a client; the owner thread's.
  absl::Time next_look = absl::InfinitePast();
};

// One Generate call, from waiting for a client to the last message. Updates that come while a write
// is in flight wait; consecutive ones of one sample are merged. A client that reads slowly costs the memory of its
// output, up to a bound; one that reads nothing is dropped.
//
// Thread-safety: the owner thread only, or the one that drains the queue after it.
// Ownership: keeps itself alive until gRPC reported its last event; the core's sink keeps it until
// the call's end.
class GenerateCall final : public ResponseSink {
 public:
  // Waits for the next client.
  static void Listen(GenerateShared& shared) {
    auto call = std::make_shared<GenerateCall>(shared);
    call->self_ = call;
    call->context_.AsyncNotifyWhenDone(call->done_.tag());
    shared.service.RequestGenerate(&call->context_, &call->proto_, &call->writer_, shared.loop->queue(),
                                   shared.loop->queue(), call->requested_.tag());
  }
  explicit GenerateCall(GenerateShared& shared) : shared_(shared), use_(*shared.loop), writer_(&context_) {}

  // ResponseSink.
  void Write(SampleUpdate update) override {
    if (finishing_) return;
    const bool goes_at_once = !writing_ && pending_.empty();
    v1::GenerateResponse& target = goes_at_once ? outgoing_ : FindPending(update.index);
    // Cleared and not made anew: its memory serves every token.
    if (goes_at_once) target.Clear();
    target.set_index(update.index);
    target.mutable_text()->append(update.text);
    for (const SampledToken& token : update.tokens) EncodeToken(token, target.add_tokens());
    target.set_finish_reason(EncodeFinish(update.finish));
    if (goes_at_once) {
      shared_.loop->turn_hold().Hold(connection_);
      WriteOutgoing();
      return;
    }
    pending_bytes_ += update.text.size();
    for (const SampledToken& token : update.tokens) pending_bytes_ += kTokenBytes * (1 + token.top.size());
    if (pending_bytes_ > kMaxPendingBytes) Drop("more waits for it than it may");
  }
  void Finish(const absl::Status& status, const RequestUsage& usage) override {
    request_ = nullptr;
    if (finishing_) return;
    final_status_ = ToGrpc(status);
    if (status.ok()) {
      if (pending_.empty()) pending_.emplace_back();
      EncodeUsage(usage, pending_.back().mutable_usage());
    } else {
      pending_.clear();
      pending_bytes_ = 0;
    }
    WriteNext();
  }

  // Called again and again: where the same write is in flight for too long, the client is dropped.
  void DropIfStuck(absl::Time now) {
    const bool in_flight = writing_ || (finishing_ && !finished_);
    if (!in_flight || std::exchange(seen_writes_, writes_) != writes_) {
      seen_at_ = now;
    } else if (now - seen_at_ > kWriteTimeout) {
      Drop("it takes nothing");
    }
  }

 private:
  void Drop(absl::string_view why) {
    if (std::exchange(dropped_, true)) return;
    LogWarning("a client is dropped", {{"request", name_}, {"why", why}});
    context_.TryCancel();
  }

  void OnRequested(bool ok) {
    if (!ok) {  // The server shuts down; there was no client, and OnDone never comes.
      use_.End();
      self_.reset();
      return;
    }
    const absl::Time arrival = shared_.clock.Now();
    Listen(shared_);
    entered_ = shared_.gate.Enter();
    shared_.calls.insert(this);
    if (shared_.connections != nullptr) connection_ = shared_.connections->Find(context_.peer());
    if (connection_ != nullptr) ++connection_->calls;
    absl::Time deadline = absl::InfiniteFuture();
    if (context_.deadline() != std::chrono::system_clock::time_point::max()) {
      deadline = arrival + (absl::FromChrono(context_.deadline()) - absl::Now());
    }
    if (!entered_) {
      Finish(absl::UnavailableError("the router is shutting down"), {});
      return;
    }
    if (absl::StatusOr<Tenant> tenant = shared_.api_keys.Check(MetadataOf(context_, kApiKeyKey)); tenant.ok()) {
      tenant_ = *tenant;
    } else {
      Submit(tenant.status(), arrival, deadline);
      return;
    }
    if (absl::Status room = shared_.core.CheckRoom(); !room.ok()) {
      Submit(room, arrival, deadline);
      return;
    }
    const size_t bytes = proto_.ByteSizeLong();
    if (bytes <= LongTexts::kLongBytes || proto_.has_token_ids()) {
      Submit(shared_.builder.Build(Raw()), arrival, deadline);
      return;
    }
    absl::Status status = shared_.long_texts.Run(bytes, [self = self_, arrival, deadline](absl::Status go) {
      absl::StatusOr<Request> request =
          go.ok() ? self->shared_.builder.Build(self->Raw()) : absl::StatusOr<Request>(std::move(go));
      self->shared_.core.Run([self, request = std::move(request), arrival, deadline]() mutable {
        self->Submit(std::move(request), arrival, deadline);
      });
    });
    if (!status.ok()) Submit(status, arrival, deadline);
  }

  RawRequest Raw() const {
    RawRequest raw = DecodeRequest(proto_);
    raw.trace_parent = std::string(MetadataOf(context_, "traceparent"));
    return raw;
  }

  void Submit(absl::StatusOr<Request> request, absl::Time arrival, absl::Time deadline) {
    if (finishing_) return;  // The client left while its text was tokenised.
    if (!request.ok()) {
      shared_.core.CountRefused(proto_.request_id(), tenant_, request.status());
      Finish(request.status(), {});
      return;
    }
    auto shared_request = std::make_shared<Request>(*std::move(request));
    shared_request->tenant = tenant_;
    shared_request->arrival = arrival;
    shared_request->deadline = deadline;
    shared_request->sink = self_;
    name_ = shared_request->name;
    request_ = shared_request;
    shared_.core.Submit(std::move(shared_request));
  }

  void OnWritten(bool ok) {
    writing_ = false;
    if (!ok) {
      LeaveCore();
      FinishCall(grpc::Status::CANCELLED);
      return;
    }
    WriteNext();
  }

  void OnFinished(bool) {
    finished_ = true;
    EndIfOver();
  }

  // The client cancelled or is gone, or the call ended.
  void OnDone(bool) {
    done_came_ = true;
    if (context_.IsCancelled()) {
      LeaveCore();
      if (!writing_) FinishCall(grpc::Status::CANCELLED);
    }
    EndIfOver();
  }

  void LeaveCore() {
    if (request_ != nullptr) shared_.core.CancelCall(std::move(request_));
  }

  // The message that waits behind a write in flight for more of this sample.
  v1::GenerateResponse& FindPending(int index) {
    const bool continues = !pending_.empty() && pending_.back().index() == index &&
                           pending_.back().finish_reason() == v1::FINISH_REASON_UNSPECIFIED;
    return continues ? pending_.back() : pending_.emplace_back();
  }

  void WriteNext() {
    if (writing_ || finishing_) return;
    if (pending_.empty()) {
      if (final_status_.has_value()) FinishCall(*final_status_);
      return;
    }
    outgoing_ = std::move(pending_.front());
    pending_.erase(pending_.begin());
    pending_bytes_ -= outgoing_.text().size();
    for (const v1::GeneratedToken& token : outgoing_.tokens()) pending_bytes_ -= kTokenBytes * (1 + token.top_size());
    WriteOutgoing();
  }

  void WriteOutgoing() {
    ++writes_;
    if (!std::exchange(name_told_, true)) outgoing_.set_request_id(name_);
    if (pending_.empty() && final_status_.has_value() && final_status_->ok()) {
      // The last message and the end go out together.
      finishing_ = true;
      writer_.WriteAndFinish(outgoing_, grpc::WriteOptions(), *final_status_, finished_event_.tag());
      return;
    }
    writing_ = true;
    writer_.Write(outgoing_, written_.tag());
  }

  void FinishCall(const grpc::Status& status) {
    if (std::exchange(finishing_, true)) return;
    ++writes_;
    writer_.Finish(status, finished_event_.tag());
  }

  void EndIfOver() {
    if (!finished_ || !done_came_) return;
    if (std::exchange(entered_, false)) shared_.gate.Leave();
    shared_.calls.erase(this);
    if (connection_ != nullptr) --connection_->calls;
    use_.End();     // The core may still hold the call.
    self_.reset();  // May destroy this.
  }

  GenerateShared& shared_;
  CompletionLoop::Use use_;
  grpc::ServerContext context_;
  v1::GenerateRequest proto_;
  grpc::ServerAsyncWriter<v1::GenerateResponse> writer_;
  MemberEvent<GenerateCall> requested_{*this, &GenerateCall::OnRequested}, written_{*this, &GenerateCall::OnWritten},
      finished_event_{*this, &GenerateCall::OnFinished}, done_{*this, &GenerateCall::OnDone};
  // Co-owners: gRPC until its last event, the core until the call's end, the tokenising thread.
  std::shared_ptr<GenerateCall> self_;
  std::shared_ptr<const Request> request_;        // While the core knows it; co-owner: the core.
  std::shared_ptr<ServerConnection> connection_;  // Null: not known. Co-owners: the table, other calls of it.
  std::string name_;
  Tenant tenant_ = kAnyone;
  v1::GenerateResponse outgoing_;
  std::vector<v1::GenerateResponse> pending_;
  std::optional<grpc::Status> final_status_;
  bool entered_ = false, writing_ = false, name_told_ = false;
  bool finishing_ = false;  // Finish was called.
  bool finished_ = false;   // And reported.
  bool done_came_ = false;
  bool dropped_ = false;
  size_t pending_bytes_ = 0;               // About; of pending_.
  uint64_t writes_ = 0, seen_writes_ = 0;  // So far, and when DropIfStuck looked.
  absl::Time seen_at_;                     // When it was another one.
};

void EncodeView(const ClusterView& view, int64_t active, bool ready, v1::ClusterStatusResponse* response) {
  response->set_ready(ready);
  response->set_active_requests(static_cast<int32_t>(active));
  for (const auto& [incarnation, worker] : view.workers()) {
    v1::WorkerStatus* status = response->add_workers();
    status->set_worker_id(worker.registration.worker_id);
    status->set_incarnation(worker.registration.incarnation.value());
    status->set_role(std::string(RoleName(worker.registration.role)));
    status->set_state(worker.session_up ? worker.heartbeat.state : "connecting");
    status->set_running_requests(worker.heartbeat.running_requests);
    status->set_waiting_requests(worker.heartbeat.waiting_requests);
    status->set_free_pages(worker.heartbeat.free_pages);
    status->set_total_pages(worker.registration.total_pages);
    status->set_queued_prompt_tokens(worker.heartbeat.queued_prompt_tokens);
    status->set_prefill_tokens_per_second(worker.speed.prefill_tokens_per_second().value_or(0));
    const auto time_per_token = worker.speed.TimePerToken(worker.heartbeat.running_requests);
    status->set_seconds_per_token(absl::ToDoubleSeconds(time_per_token.value_or(absl::ZeroDuration())));
    for (const auto& [state, count] : worker.heartbeat.pages) (*status->mutable_pages())[state] = count;
    for (const LinkReport& link : worker.heartbeat.links) {
      if (!view.workers().contains(link.peer)) continue;  // Drained or lost.
      v1::LinkStatus* out = response->add_links();
      out->set_prefill_worker(worker.registration.worker_id);
      out->set_decode_worker(link.peer_worker);
      out->set_transport(link.transport);
      out->set_path(link.path);
      out->set_gigabytes_per_second(link.gigabytes_per_second);
      out->set_latency_us(link.latency_us);
      out->set_up(link.up);
      out->set_error(link.error);
    }
  }
}

class GenerateServiceParts final : public GenerateService {
 public:
  GenerateServiceParts(const GenerateServiceOptions& options, const ApiKeys& api_keys, const RequestBuilder& builder,
                       RouterCore& core, LongTexts& long_texts, Gate& gate, const Clock& clock)
      : options_(options), shared_{service_, api_keys, builder, core, gate, clock, long_texts} {}

  HostedService hosted() override { return {&service_, v1::Router::service_full_name()}; }
  void Start(ServerRunner& server) override {
    shared_.loop = &server.loop();
    shared_.connections = server.connections();
    GenerateCall::Listen(shared_);
    ServeRareCalls(server.loop());
  }
  void DropStuckClients() override {
    const absl::Time now = shared_.clock.Now();
    if (now < shared_.next_look) return;
    shared_.next_look = now + kBetweenLooks;
    for (GenerateCall* call : shared_.calls) call->DropIfStuck(now);
  }

 private:
  void ServeRareCalls(CompletionLoop& loop);

  const GenerateServiceOptions options_;
  RouterService service_;
  GenerateShared shared_;
};

void GenerateServiceParts::ServeRareCalls(CompletionLoop& loop) {
  const CallCheck check = [this](const grpc::ServerContext& context) {
    return ToGrpc(shared_.api_keys.Check(MetadataOf(context, kApiKeyKey)).status());
  };
  ServeUnary<v1::CancelRequest, v1::CancelResponse>(
      loop, [this](auto... arguments) { service_.RequestCancel(arguments...); },
      [this](const v1::CancelRequest& request, v1::CancelResponse*, UnaryDone done) {
        shared_.core.CancelByName(request.request_id(), [done](const absl::Status& status) { done(ToGrpc(status)); });
      },
      check);
  ServeUnary<v1::ExplainRequest, v1::ExplainResponse>(
      loop, [this](auto... arguments) { service_.RequestExplain(arguments...); },
      [this](const v1::ExplainRequest& request, v1::ExplainResponse* response, UnaryDone done) {
        const std::string& name = request.request_id();
        shared_.core.Explain(name, [name, response, done](const auto& decisions) {
          for (const auto& [age, what] : decisions) {
            v1::PlacementDecision* decision = response->add_decisions();
            EncodeDuration(age, decision->mutable_age());
            decision->set_what(what);
          }
          done(decisions.empty() ? ToGrpc(absl::NotFoundError(
                                       absl::StrCat("request_id: \"", name, "\" is not known here, or not any more")))
                                 : grpc::Status::OK);
        });
      },
      check);
  ServeUnary<v1::ListModelsRequest, v1::ListModelsResponse>(
      loop, [this](auto... arguments) { service_.RequestListModels(arguments...); },
      [this](const v1::ListModelsRequest&, v1::ListModelsResponse* response, const UnaryDone& done) {
        v1::ModelCard* card = response->add_models();
        card->set_name(options_.served_name);
        card->set_max_context_tokens(shared_.core.max_context_tokens());
        card->set_vocabulary_size(options_.vocabulary_size);
        done(grpc::Status::OK);
      },
      check);
  ServeUnary<v1::ClusterStatusRequest, v1::ClusterStatusResponse>(
      loop, [this](auto... arguments) { service_.RequestClusterStatus(arguments...); },
      [this](const v1::ClusterStatusRequest&, v1::ClusterStatusResponse* response, UnaryDone done) {
        shared_.core.ReadState([this, response, done](const ClusterView& view, int64_t active, bool ready) {
          EncodeView(view, active, ready && !shared_.gate.closed(), response);
          done(grpc::Status::OK);
        });
      },
      check);
}

}  // namespace

std::unique_ptr<GenerateService> GenerateService::Create(const GenerateServiceOptions& options, const ApiKeys& api_keys,
                                                         const RequestBuilder& builder, RouterCore& core,
                                                         LongTexts& long_texts, Gate& gate, const Clock& clock) {
  return std::make_unique<GenerateServiceParts>(options, api_keys, builder, core, long_texts, gate, clock);
}

}  // namespace tandem
