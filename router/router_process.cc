#include "router/router_process.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/cluster_secret.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/rpc/server_runner.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "router/control_service.h"
#include "router/generate_service.h"
#include "router/http/http_server.h"
#include "router/http/openai_service.h"
#include "router/http/span_exporter.h"
#include "router/http/turn_relay.h"
#include "router/router_core.h"
#include "router/worker_client.h"

namespace tandem {
namespace {

// How long calls that are told of the end have to hear it.
constexpr absl::Duration kStopGrace = absl::Milliseconds(200);

class RouterParts final : public RouterProcess, public RouterOutside, private OwnerWait {
 public:
  ~RouterParts() override {
    gate_.Close();
    long_texts_.Stop();
    if (core_ != nullptr) {
      core_->FailAll();
      core_->Run([this] { control_.Close(); });
    }
    if (http_server_ != nullptr) http_server_->Stop(kStopGrace);
    // The owner thread handles the calls until none is left; then the server's end handles what remains.
    if (server_ != nullptr) server_->Shutdown(kStopGrace);
    if (core_ != nullptr) core_->Stop();
  }

  // Checkpoint, tokenizer and chat template.
  absl::Status LoadModel(const Topology& topology);
  absl::Status Build(const Topology& topology, const ProcessPlan& plan);
  absl::Status StartHttp(const Topology& topology, const ProcessPlan& plan);

  const std::string& address() const override { return server_->address(); }

  bool Drain(absl::Duration timeout) override {
    server_->SetServing(false);
    gate_.Close();
    return gate_.AwaitEmpty(timeout);
  }

  // RouterOutside, on the core's thread.
  std::unique_ptr<WorkerClient> Connect(const WorkerRegistration& registration) override {
    return NewGrpcWorkerClient(registration, *core_, server_->loop());
  }
  void Direct(Incarnation worker, const RouterDirective& directive) override { control_.Direct(worker, directive); }
  void Expel(Incarnation worker, const std::string& reason) override { control_.Expel(worker, reason); }
  void EndTurn() override {
    relay_.EndTurn();
    if (server_ != nullptr) server_->loop().turn_hold().EndTurn();
    if (generate_ != nullptr) generate_->DropStuckClients();
  }
  void Export(std::vector<Span> spans) override { spans_->Add(std::move(spans)); }

  // OwnerWait.
  void WaitAndHandle(absl::Duration timeout) override { server_->loop().WaitAndHandle(timeout); }
  void Wake() override { server_->loop().Wake(); }

 private:
  MetricsServer metrics_server_;
  std::optional<RouterMetrics> metrics_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  std::unique_ptr<RequestBuilder> builder_;
  ApiKeys api_keys_;
  std::shared_ptr<const TlsIdentity> tls_;  // Null: in the clear.
  Gate gate_;
  LongTexts long_texts_;
  TurnRelay relay_;
  ControlService control_;
  // What the core's sinks and calls may touch until it has ended stands before it.
  std::unique_ptr<OpenAiService> openai_;
  std::unique_ptr<HttpServer> http_server_;
  std::unique_ptr<SpanExporter> spans_;
  std::unique_ptr<RouterCore> core_;
  std::unique_ptr<GenerateService> generate_;
  std::unique_ptr<ServerRunner> server_;
};

absl::Status RouterParts::LoadModel(const Topology& topology) {
  ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(topology.model.path));
  ASSIGN_OR_RETURN(tokenizer_, checkpoint_->LoadTokenizer());
  const ModelConfig& config = checkpoint_->config();
  if (!checkpoint_->chat_template().empty()) {
    std::string bos = checkpoint_->bos_text(), eos = checkpoint_->eos_text();
    if (bos.empty()) bos = std::string(tokenizer_->TokenBytes(tokenizer_->bos(), /*with_special=*/true));
    if (eos.empty() && !config.eos_tokens.empty())
      eos = std::string(tokenizer_->TokenBytes(config.eos_tokens[0], true));
    ASSIGN_OR_RETURN(chat_template_,
                     ChatTemplate::Create(checkpoint_->chat_template(), std::move(bos), std::move(eos)));
  }
  return absl::OkStatus();
}

void WarnOfOpenDoors(const Topology& topology) {
  for (const auto& [key, address] : {std::pair<absl::string_view, absl::string_view>{"listen", topology.router.listen},
                                     {"http_listen", topology.router.http_listen}}) {
    if (!IsReachable(address)) continue;
    if (topology.router.api_keys.empty() && topology.tls.client_authorities.path.empty()) {
      LogWarning("everybody who reaches the router may call it: set router.api_keys", {{key, address}});
    }
    if (!topology.tls.is_set()) {
      LogWarning("what clients send is not encrypted: set tls, or put a proxy with TLS before the router",
                 {{key, address}});
    }
  }
  if (IsReachable(topology.router.metrics_listen)) {
    LogWarning("everybody who reaches it may read the metrics", {{"metrics_listen", topology.router.metrics_listen}});
  }
}

absl::Status RouterParts::Build(const Topology& topology, const ProcessPlan& plan) {
  WarnOfOpenDoors(topology);
  RETURN_IF_ERROR(LoadModel(topology));
  ASSIGN_OR_RETURN(api_keys_, ApiKeys::Load(topology.router.api_keys));
  builder_ = std::make_unique<RequestBuilder>(topology.model.served_name, *tokenizer_, chat_template_.get(),
                                              topology.router.service_tiers);
  RouterCore::Options options;
  options.max_active_requests = topology.router.max_active_requests;
  options.max_retries = static_cast<int>(topology.router.max_retries);
  options.worker_timeout = topology.router.worker_timeout;
  options.placement_timeout = topology.router.placement_timeout;
  options.tenants = api_keys_.tenants();
  options.access_log = topology.router.access_log;
  options.placement = topology.router.placement;
  options.random_ties = topology.router.random_ties;
  options.conditional_prefill_tokens = static_cast<int>(topology.router.conditional_prefill_tokens);
  options.split = std::any_of(topology.pools.begin(), topology.pools.end(),
                              [](const PoolSettings& pool) { return pool.role == Role::kPrefill; });
  options.trace_share = topology.router.trace_share;
  if (!topology.router.otlp_endpoint.empty()) {
    options.exports_spans = true;
    spans_ = std::make_unique<SpanExporter>(SpanExporter::Options{.endpoint = topology.router.otlp_endpoint});
  }
  options.model_context_tokens = checkpoint_->config().max_context_tokens;
  options.model_fingerprint = checkpoint_->Fingerprint(topology.model.precision);
  metrics_.emplace(metrics_server_, topology.model.served_name);
  core_ =
      std::make_unique<RouterCore>(options, *tokenizer_, *metrics_, static_cast<RouterOutside&>(*this), Clock::Real());
  generate_ = GenerateService::Create({topology.model.served_name, tokenizer_->vocabulary_size()}, api_keys_, *builder_,
                                      *core_, long_texts_, gate_, Clock::Real());
  ASSIGN_OR_RETURN(PeerTrust trust, ReadPeerTrust(topology));
  tls_ = trust.tls;
  ASSIGN_OR_RETURN(server_, ServerRunner::Start(plan.service_address, {generate_->hosted(), control_.hosted()},
                                                std::move(trust), Callers::kClientsAsWell));
  generate_->Start(*server_);
  control_.Start(server_->loop(), *core_, api_keys_);
  if (!plan.http_address.empty()) RETURN_IF_ERROR(StartHttp(topology, plan));
  core_->Start(this);
  if (!plan.metrics_address.empty()) RETURN_IF_ERROR(metrics_server_.Listen(plan.metrics_address));
  LogInfo("serving", {{"address", server_->address()},
                      {"http", http_server_ == nullptr ? "off" : http_server_->address()},
                      {"metrics_port", metrics_server_.port()},
                      {"model", topology.model.served_name},
                      {"pid", getpid()}});
  return absl::OkStatus();
}

absl::Status RouterParts::StartHttp(const Topology& topology, const ProcessPlan& plan) {
  openai_ = std::make_unique<OpenAiService>(OpenAiShared{.served_name = topology.model.served_name,
                                                         .max_samples = topology.router.max_active_requests,
                                                         .chat_format = ChatFormatOf(checkpoint_->chat_template()),
                                                         .splits_chat_output = topology.router.splits_chat_output,
                                                         .api_keys = api_keys_,
                                                         .tokenizer = *tokenizer_,
                                                         .builder = *builder_,
                                                         .core = *core_,
                                                         .long_texts = long_texts_,
                                                         .relay = relay_,
                                                         .gate = gate_,
                                                         .clock = Clock::Real()},
                                            metrics_server_);
  HttpServer::Options options;
  options.address = plan.http_address;
  if (tls_ != nullptr) {
    ASSIGN_OR_RETURN(options.tls, TlsContext::ForServer(*tls_, TlsContext::Peer::kAnyone));
  }
  absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Create(options, *openai_);
  if (!server.ok()) {
    return absl::Status(server.status().code(), absl::StrCat("router.http_listen: ", server.status().message()));
  }
  http_server_ = *std::move(server);
  openai_->Attach(*http_server_);
  relay_.Attach(*http_server_);
  http_server_->Start();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ProcessNeeds> RouterProcess::Check(const Topology& topology) {
  RouterParts parts;
  if (absl::Status status = parts.LoadModel(topology); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(topology.model.where, ": model.path: ", status.message()));
  }
  RETURN_IF_ERROR(ApiKeys::Load(topology.router.api_keys).status());
  RETURN_IF_ERROR(ReadPeerTrust(topology).status());
  return ProcessNeeds();
}

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Start(const Topology& topology, const ProcessPlan& plan) {
  auto parts = std::make_unique<RouterParts>();
  RETURN_IF_ERROR(parts->Build(topology, plan));
  return std::unique_ptr<RouterProcess>(std::move(parts));
}

}  // namespace tandem
