#include "prefill/prefill_process.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/process.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/session_server.h"
#include "common/rpc/worker_agent.h"
#include "common/status_macros.h"
#include "engine/engine_thread.h"
#include "engine/worker_reporter.h"
#include "engine/worker_setup.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/sender_hub.h"
#include "kvtransfer/transport_factory.h"
#include "kvtransfer/worker_pool.h"
#include "prefill/directed_peers.h"
#include "prefill/prefill_metrics.h"
#include "prefill/prefill_service.h"
#include "prefill/prefill_worker.h"

namespace tandem {
namespace {

constexpr int kMustRestartExitCode = 75;

// Posts to the engine thread what arrives on others, and the other way round.
class PrefillParts final : public PrefillProcess, private SessionHandler, private SenderEvents, private KvDestination {
 public:
  static absl::StatusOr<std::unique_ptr<PrefillProcess>> Start(const Topology& topology, const ProcessPlan& plan) {
    auto parts = std::make_unique<PrefillParts>();
    RETURN_IF_ERROR(parts->Build(topology, plan));
    return std::unique_ptr<PrefillProcess>(std::move(parts));
  }

  ~PrefillParts() override {
    agents_.clear();
    if (server_ != nullptr) {
      sessions_.Close();
      server_->Shutdown(absl::Milliseconds(200));
    }
    // The engine's worker calls the hub, and the hub posts to the engine: first the engine stops,
    // then the hub.
    if (engine_ != nullptr) engine_->Stop();
    if (hub_ != nullptr) hub_->Stop();
  }

  bool starts_again() const override { return starts_again_; }
  bool Drain(absl::Duration timeout) override {
    draining_ = true;
    if (hub_ != nullptr) hub_->SetLeaving();
    reporter_->SetState("draining");
    server_->SetServing(false);
    return engine_->AwaitCondition([this] { return worker_->num_legs() == 0; }, timeout);
  }

 private:
  absl::Status Build(const Topology& topology, const ProcessPlan& plan);
  absl::Status StartHub(const Topology& topology, const ProcessPlan& plan, const Engine& engine);
  void StartAgents(const Topology& topology, const ProcessPlan& plan);
  void StartAgent(const std::string& router, const ProcessPlan& plan);

  // SessionHandler, on the server's thread.
  void OnCommands(SessionId session, CommandFrame frame) override {
    if (draining_) sessions_.RefuseStarts(session, frame);
    engine_->Post(
        [this, session, frame = std::move(frame)](Engine& engine) { worker_->OnCommands(engine, session, frame); });
  }
  void OnSessionClosed(SessionId session) override {
    engine_->Post([this, session](Engine& engine) { worker_->OnSessionClosed(engine, session); });
  }

  // SenderEvents, on the link thread.
  void OnOutcome(const HandoverOutcome& outcome) override {
    engine_->Post([this, outcome](Engine& engine) { worker_->OnOutcome(engine, outcome); });
  }
  void OnLinkState(const LinkState& state) override {
    metrics_->SetLink(state);
    reporter_->SetLink({state.worker_id, state.incarnation, state.up, state.transport, state.path,
                        state.gigabytes_per_second, state.latency_us, state.error});
  }
  void OnIgnoredMessages(int64_t count) override { metrics_->CountIgnoredMessages(count); }
  void OnMustRestart(const std::string& reason) override {
    LogError("this process must restart: a decode worker waits for its end", {{"reason", reason}});
    _exit(kMustRestartExitCode);
  }

  // KvDestination, on the engine thread.
  void Start(Incarnation peer, HandoverId handover, std::vector<TokenId> tokens,
             std::vector<PageIndex> pages) override {
    hub_->Start(peer, handover, std::move(tokens), std::move(pages));
  }
  void LayersReady(Incarnation peer, HandoverId handover, IndexRange tokens, IndexRange layers,
                   std::shared_ptr<const SourceEvent> ready) override {
    hub_->LayersReady(peer, handover, tokens, layers, std::move(ready));
  }
  void Finish(Incarnation peer, HandoverId handover, TokenId first_token) override {
    hub_->Finish(peer, handover, first_token);
  }
  void Cancel(Incarnation peer, HandoverId handover, const std::string& reason) override {
    hub_->Cancel(peer, handover, reason);
  }

  void SetPeers(const std::vector<DirectedPeer>& wanted) {
    std::vector<LinkPeer> peers;
    for (const DirectedPeer& peer : wanted) peers.push_back({peer.worker_id, peer.incarnation, peer.link_address});
    hub_->SetPeers(std::move(peers));
  }

  const Incarnation incarnation_{DrawRandomId()};
  PeerTrust trust_;
  std::atomic<bool> draining_ = false, starts_again_ = false;
  std::atomic<bool> is_computing_ = false;  // The engine has work.
  MetricsServer metrics_server_;
  std::unique_ptr<PrefillMetrics> metrics_;
  std::unique_ptr<WorkerPool> pool_;
  SessionServer sessions_{*this};
  std::unique_ptr<PrefillWorker> worker_;
  std::unique_ptr<EngineThread> engine_;
  std::unique_ptr<WorkerReporter> reporter_;
  std::unique_ptr<SenderHub> hub_;
  DirectedPeers peers_;  // The engine thread only.
  std::unique_ptr<SessionService> service_;
  std::unique_ptr<ServerRunner> server_;
  std::vector<std::unique_ptr<WorkerAgent>> agents_;  // One for each router.
};

absl::Status PrefillParts::Build(const Topology& topology, const ProcessPlan& plan) {
  // First of all, so that a port that is taken shows before the model is loaded.
  RETURN_IF_ERROR(metrics_server_.Listen(plan.metrics_address));
  ASSIGN_OR_RETURN(trust_, ReadPeerTrust(topology));
  const PoolSettings& settings = topology.pools[plan.pool];
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(topology.model.path));
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                   Engine::Create(std::move(checkpoint), EngineOptions(topology, plan), Clock::Real()));
  ASSIGN_OR_RETURN(pool_, WorkerPool::Create({.gpu = plan.gpu,
                                              .bytes = static_cast<uint64_t>(engine->layout().pool_bytes()),
                                              .gpu_is_computing = [this] { return is_computing_.load(); }}));
  engine->SetKvMemory(pool_->base());
  RETURN_IF_ERROR(engine->WarmUp());
  metrics_ = std::make_unique<PrefillMetrics>(metrics_server_);
  worker_ = std::make_unique<PrefillWorker>(
      settings.kv_hold, Clock::Real(), static_cast<KvDestination&>(*this), *metrics_,
      [this](int64_t session, EventFrame events) { sessions_.Send(session, std::move(events)); });
  RETURN_IF_ERROR(StartHub(topology, plan, *engine));
  EngineThread::Hooks hooks;
  hooks.on_events = [this](Engine& engine, std::vector<SequenceEvent> events) {
    worker_->OnEngineEvents(engine, std::move(events));
  };
  hooks.on_progress = [this](const Engine& engine, const KvProgress& progress) {
    is_computing_ = true;
    worker_->OnProgress(engine, progress);
  };
  hooks.on_turn = [this](Engine& engine) {
    is_computing_ = engine.HasWork();
    worker_->OnTurn(engine);
  };
  engine_ = std::make_unique<EngineThread>(std::move(engine), std::move(hooks));
  reporter_ = std::make_unique<WorkerReporter>(*engine_);
  service_ = NewPrefillService(sessions_);
  ASSIGN_OR_RETURN(server_, ServerRunner::Start(plan.service_address, {service_->hosted()}, trust_));
  service_->Start(server_->loop());
  server_->StartThread();
  StartAgents(topology, plan);
  LogInfo("serving", {{"address", server_->address()},
                      {"metrics_port", metrics_server_.port()},
                      {"kv_pages", engine_->engine().layout().num_pages},
                      {"pid", getpid()}});
  return absl::OkStatus();
}

absl::Status PrefillParts::StartHub(const Topology& topology, const ProcessPlan& plan, const Engine& engine) {
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Transport>> transports,
                   pool_->MakeTransports(topology.links.transports));
  SenderHub::Options options;
  options.hello = MakeHello(plan.name, incarnation_, engine.layout(), engine.fingerprint(), topology.links.checksums,
                            trust_.secret);
  if (trust_.tls != nullptr) {
    ASSIGN_OR_RETURN(options.tls, TlsContext::ForClient(*trust_.tls));
  }
  options.pool = pool_->base();
  options.memory = &pool_->memory();
  options.expected_rates = topology.links.expected_rates;
  options.minimum_share = topology.links.minimum_share;
  options.heartbeat = topology.links.heartbeat;
  options.missed_heartbeats = topology.links.missed_heartbeats;
  if (const char* faults = std::getenv("TANDEM_TRANSFER_FAULTS"); faults != nullptr) {
    ASSIGN_OR_RETURN(options.faults, ParseTransferFaults(faults));
    LogWarning("transfers are made faulty on purpose", {{"faults", faults}});
  }
  ASSIGN_OR_RETURN(hub_, SenderHub::Create(std::move(options), std::move(transports), *this));
  return absl::OkStatus();
}

void PrefillParts::StartAgents(const Topology& topology, const ProcessPlan& plan) {
  for (const std::string& router : topology.RouterAddresses()) StartAgent(router, plan);
}

void PrefillParts::StartAgent(const std::string& router, const ProcessPlan& plan) {
  const Engine& engine = engine_->engine();
  WorkerAgent::Options options;
  options.router_address = router;
  options.registration = {.worker_id = plan.name,
                          .incarnation = incarnation_,
                          .role = Role::kPrefill,
                          .service_address = server_->address(),
                          .domain = plan.domain,
                          .model_fingerprint = engine.fingerprint(),
                          .total_pages = engine.layout().num_pages,
                          .page_tokens = engine.layout().page_tokens,
                          .max_context_tokens = engine.max_context_tokens(),
                          .page_bytes = engine.layout().page_bytes()};
  options.collect = [this, router](bool restart) {
    WorkerHeartbeat heartbeat = reporter_->Collect(router, restart);
    metrics_->SetEngine(heartbeat);
    return heartbeat;
  };
  options.on_directive = [this, router](const RouterDirective& directive) {
    engine_->Post([this, router, peers = directive.peers](Engine&) { SetPeers(peers_.Set(router, peers)); });
    if (directive.tell_all) reporter_->TellAllAgain(router);
    if (!directive.drain) return;
    const bool was_draining = draining_.exchange(true);
    starts_again_ = directive.start_again && (!was_draining || starts_again_);  // Who says "leave" wins.
    if (!was_draining) RequestTermination();
  };
  options.on_lost = [this, router] {
    reporter_->Forget(router);
    engine_->Post([this, router](Engine&) { SetPeers(peers_.Lose(router)); });
  };
  agents_.push_back(std::make_unique<WorkerAgent>(server_->loop(), std::move(options)));
}

}  // namespace

absl::StatusOr<ProcessNeeds> PrefillProcess::Check(const Topology& topology, const ProcessPlan& plan) {
  // Those for GPUs can be made on one only.
  const absl::Status status =
      plan.gpu.has_value() ? absl::OkStatus() : MakeTransports(topology.links.transports, nullptr).status();
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(topology.file, ": ", status.message()));
  }
  return CheckWorker(topology, plan);
}

absl::StatusOr<std::unique_ptr<PrefillProcess>> PrefillProcess::Start(const Topology& topology,
                                                                      const ProcessPlan& plan) {
  return PrefillParts::Start(topology, plan);
}

}  // namespace tandem
