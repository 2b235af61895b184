#include "client/router_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/error_reason.h"
#include "common/rpc/channel.h"
#include "common/rpc/frame_codec.h"
#include "common/rpc/status_codec.h"
#include "common/status_macros.h"
#include "tandem/v1/control.grpc.pb.h"
#include "tandem/v1/router.grpc.pb.h"

namespace tandem {
namespace {

// For calls that a router answers at once.
constexpr absl::Duration kShortCall = absl::Seconds(5);
// What a call waits for a connection to be made before it asks why there is none. gRPC only moves a connection on while
// somebody waits, or once in 5 s: without this, a client that asks again and again, and is told at once that there is
// no router, would find one that has just started after seconds only.
constexpr absl::Duration kConnecting = absl::Milliseconds(100);

absl::Duration DecodeDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  if (timeout < absl::InfiniteDuration())
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
}

v1::GenerateRequest ToProto(const GenerateOptions& options) {
  v1::GenerateRequest request;
  request.set_request_id(options.request_id);
  request.set_model(options.model);
  if (options.text.has_value()) {
    request.set_text(*options.text);
  } else if (options.tokens.has_value()) {
    request.mutable_token_ids()->mutable_ids()->Add(options.tokens->begin(), options.tokens->end());
  } else if (!options.chat.empty()) {
    for (const auto& [role, content] : options.chat) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role(role);
      message->set_content(content);
    }
  }
  EncodeSampling(options.sampling, request.mutable_sampling());
  request.mutable_sampling()->clear_seed();
  if (options.seed.has_value()) request.mutable_sampling()->set_seed(*options.seed);
  for (const std::string& stop : options.stop) request.mutable_sampling()->add_stop(stop);
  request.set_priority(options.priority);
  request.set_service_tier(options.service_tier);
  request.set_n(options.n);
  return request;
}

GeneratedPiece ToPiece(const v1::GenerateResponse& response) {
  GeneratedPiece piece{.request_id = response.request_id(), .index = response.index(), .text = response.text()};
  for (const v1::GeneratedToken& token : response.tokens()) {
    SampledToken sampled{.token = token.token()};
    if (token.has_logprob()) sampled.logprob = token.logprob();
    for (const v1::TokenLogprob& entry : token.top()) sampled.top.push_back({entry.token(), entry.logprob()});
    piece.tokens.push_back(std::move(sampled));
  }
  if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    piece.finish_reason =
        absl::AsciiStrToLower(absl::StripPrefix(v1::FinishReason_Name(response.finish_reason()), "FINISH_REASON_"));
  }
  return piece;
}

GenerateSummary ToSummary(const v1::Usage& usage) {
  return {.prompt_tokens = usage.prompt_tokens(),
          .completion_tokens = usage.completion_tokens(),
          .cached_tokens = usage.cached_tokens(),
          .retries = usage.retries(),
          .queue = DecodeDuration(usage.stages().queue()),
          .prefill = DecodeDuration(usage.stages().prefill()),
          .transfer = DecodeDuration(usage.stages().transfer()),
          .handover = DecodeDuration(usage.stages().handover()),
          .decode = DecodeDuration(usage.stages().decode()),
          .prefill_worker = usage.prefill_worker(),
          .decode_worker = usage.decode_worker()};
}

}  // namespace

absl::StatusOr<ClientIdentity> IdentityOfEnvironment() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : std::string(absl::StripAsciiWhitespace(value));
  };
  const auto file = [&](const char* name) -> TlsSettings::File { return {variable(name), name}; };
  ClientIdentity identity{.api_key = variable("TANDEM_API_KEY")};
  if (!std::all_of(identity.api_key.begin(), identity.api_key.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError("TANDEM_API_KEY is not printable ASCII without spaces");
  }
  TlsSettings tls;
  tls.authorities = file("TANDEM_TLS_AUTHORITIES");
  tls.certificate = file("TANDEM_TLS_CERTIFICATE");
  tls.key = file("TANDEM_TLS_KEY");
  tls.name = variable("TANDEM_TLS_NAME");
  if (tls.certificate.path.empty() != tls.key.path.empty()) {
    return absl::InvalidArgumentError("TANDEM_TLS_CERTIFICATE and TANDEM_TLS_KEY go together: set both or none");
  }
  if (!tls.is_set() && (!tls.certificate.path.empty() || !tls.name.empty())) {
    return absl::InvalidArgumentError(
        "TANDEM_TLS_CERTIFICATE and TANDEM_TLS_NAME are for TLS, which TANDEM_TLS_AUTHORITIES turns on");
  }
  ASSIGN_OR_RETURN(identity.tls, LoadClientTls(tls));
  return identity;
}

struct RouterClient::Connection {
  // The status of a call, in words of ours where no router has said anything.
  absl::Status StatusOf(const grpc::Status& grpc_status) const {
    const absl::Status status = FromGrpc(grpc_status);
    if (GetErrorReason(status) != ErrorReason::kUnknown) return status;
    if (absl::IsUnimplemented(status)) {
      return absl::UnimplementedError(absl::StrCat("what answers at ", router, " is no router; ", status.message()));
    }
    const bool is_connected = channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
    if (is_connected || (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status))) return status;
    // Of "failed to connect to all addresses; last error: ...: Connection refused" only the end says why.
    absl::string_view cause = status.message();
    if (absl::StartsWith(cause, "failed to connect to all addresses")) cause.remove_prefix(cause.rfind(": ") + 2);
    // A server with TLS closes what does not begin as TLS does.
    const bool was_closed = cause == "Socket closed";
    return absl::Status(status.code(),
                        absl::StrCat("no router can be reached at ", router, ": ", cause,
                                     !was_closed ? ""
                                     : has_tls   ? "; if it wants a certificate, set TANDEM_TLS_CERTIFICATE"
                                                 : "; if it has TLS, set TANDEM_TLS_AUTHORITIES"));
  }

  void Prepare(grpc::ClientContext& context, absl::Duration timeout) const {
    SetTimeout(context, timeout);
    channel->WaitForConnected(std::chrono::system_clock::now() +
                              absl::ToChronoMicroseconds(std::min(timeout, kConnecting)));
    if (!api_key.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", api_key));
  }

  std::string router, api_key;
  bool has_tls = false;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Router::Stub> router_stub;
  std::unique_ptr<v1::Control::Stub> control_stub;
};

RouterClient::RouterClient(const std::string& router, const ClientIdentity& identity)
    : connection_(std::make_unique<Connection>()) {
  connection_->router = router;
  connection_->api_key = identity.api_key;
  connection_->has_tls = identity.tls != nullptr;
  connection_->channel = NewChannel(router, identity.tls.get());
  connection_->router_stub = v1::Router::NewStub(connection_->channel);
  connection_->control_stub = v1::Control::NewStub(connection_->channel);
}
RouterClient::~RouterClient() = default;

absl::StatusOr<GenerateSummary> RouterClient::Generate(const GenerateOptions& options,
                                                       const std::function<bool(const GeneratedPiece&)>& on_piece) {
  grpc::ClientContext context;
  connection_->Prepare(context, options.timeout);
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader =
      connection_->router_stub->Generate(&context, ToProto(options));
  v1::GenerateResponse response;
  GenerateSummary summary;
  bool has_answered = false;
  while (reader->Read(&response)) {
    has_answered = true;
    if (response.has_usage()) summary = ToSummary(response.usage());
    if (!on_piece(ToPiece(response))) context.TryCancel();
  }
  const grpc::Status end = reader->Finish();
  // Once something has come the router was there: how it ended is not for us to say.
  if (absl::Status status = has_answered ? FromGrpc(end) : connection_->StatusOf(end); !status.ok()) return status;
  return summary;
}

absl::Status RouterClient::Cancel(const std::string& request_id) {
  grpc::ClientContext context;
  connection_->Prepare(context, kShortCall);
  v1::CancelRequest request;
  request.set_request_id(request_id);
  v1::CancelResponse response;
  return connection_->StatusOf(connection_->router_stub->Cancel(&context, request, &response));
}

absl::StatusOr<ClusterSummary> RouterClient::Status(absl::Duration timeout) {
  grpc::ClientContext context;
  connection_->Prepare(context, timeout);
  v1::ClusterStatusResponse response;
  if (absl::Status status = connection_->StatusOf(connection_->router_stub->ClusterStatus(&context, {}, &response));
      !status.ok())
    return status;
  ClusterSummary summary{.ready = response.ready(), .active_requests = response.active_requests()};
  for (const v1::WorkerStatus& worker : response.workers()) {
    WorkerSummary& out = summary.workers.emplace_back();
    out = {.worker_id = worker.worker_id(),
           .role = worker.role(),
           .state = worker.state(),
           .running = worker.running_requests(),
           .waiting = worker.waiting_requests(),
           .free_pages = worker.free_pages(),
           .total_pages = worker.total_pages(),
           .queued_prompt_tokens = worker.queued_prompt_tokens(),
           .prefill_tokens_per_second = worker.prefill_tokens_per_second(),
           .seconds_per_token = worker.seconds_per_token(),
           .incarnation = Incarnation(worker.incarnation())};
    for (const auto& [state, count] : worker.pages()) out.pages.emplace_back(state, count);
    std::sort(out.pages.begin(), out.pages.end());
  }
  for (const v1::LinkStatus& link : response.links()) {
    summary.links.push_back({link.prefill_worker(), link.decode_worker(), link.transport(), link.path(),
                             link.gigabytes_per_second(), link.latency_us(), link.up(), link.error()});
  }
  std::sort(summary.workers.begin(), summary.workers.end(),
            [](const WorkerSummary& a, const WorkerSummary& b) { return a.worker_id < b.worker_id; });
  std::sort(summary.links.begin(), summary.links.end(), [](const LinkSummary& a, const LinkSummary& b) {
    return std::tie(a.prefill_worker, a.decode_worker) < std::tie(b.prefill_worker, b.decode_worker);
  });
  return summary;
}

absl::StatusOr<std::vector<ModelSummary>> RouterClient::Models() {
  grpc::ClientContext context;
  connection_->Prepare(context, kShortCall);
  v1::ListModelsResponse response;
  RETURN_IF_ERROR(
      connection_->StatusOf(connection_->router_stub->ListModels(&context, v1::ListModelsRequest(), &response)));
  std::vector<ModelSummary> models;
  for (const v1::ModelCard& card : response.models()) {
    models.push_back({card.name(), card.max_context_tokens(), card.vocabulary_size()});
  }
  return models;
}

absl::StatusOr<std::vector<std::pair<absl::Duration, std::string>>> RouterClient::Explain(
    const std::string& request_id) {
  grpc::ClientContext context;
  connection_->Prepare(context, kShortCall);
  v1::ExplainRequest request;
  request.set_request_id(request_id);
  v1::ExplainResponse response;
  RETURN_IF_ERROR(connection_->StatusOf(connection_->router_stub->Explain(&context, request, &response)));
  std::vector<std::pair<absl::Duration, std::string>> decisions;
  for (const v1::PlacementDecision& decision : response.decisions()) {
    decisions.emplace_back(absl::Seconds(decision.age().seconds()) + absl::Nanoseconds(decision.age().nanos()),
                           decision.what());
  }
  return decisions;
}

absl::Status RouterClient::Drain(const std::string& worker_id, bool start_again) {
  grpc::ClientContext context;
  connection_->Prepare(context, kShortCall);
  v1::DrainRequest request;
  request.set_worker_id(worker_id);
  request.set_start_again(start_again);
  v1::DrainResponse response;
  return connection_->StatusOf(connection_->control_stub->Drain(&context, request, &response));
}

}  // namespace tandem
