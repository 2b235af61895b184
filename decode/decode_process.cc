#include "decode/decode_process.h"

#include <unistd.h>

#include <atomic>
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
#include "decode/decode_metrics.h"
#include "decode/decode_service.h"
#include "decode/decode_worker.h"
#include "engine/engine_thread.h"
#include "engine/worker_reporter.h"
#include "engine/worker_setup.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/receiver_hub.h"
#include "kvtransfer/self_test.h"
#include "kvtransfer/transport_factory.h"
#include "kvtransfer/worker_pool.h"

namespace tandem {
namespace {

// Above this share of the pool in quarantine, the worker says it is degraded.
constexpr double kMaxQuarantinedShare = 0.25;

// Posts to the engine thread what arrives on others, and the other way round.
class DecodeParts final : public DecodeProcess, private SessionHandler, private ReceiverEvents {
 public:
  static absl::StatusOr<std::unique_ptr<DecodeProcess>> Start(const Topology& topology, const ProcessPlan& plan) {
    auto parts = std::make_unique<DecodeParts>();
    RETURN_IF_ERROR(parts->Build(topology, plan));
    return std::unique_ptr<DecodeProcess>(std::move(parts));
  }

  ~DecodeParts() override {
    agents_.clear();
    if (server_ != nullptr) {
      sessions_.Close();
      server_->Shutdown(absl::Milliseconds(200));
    }
    // The engine's worker calls the hub, and the hub posts to the engine: first the engine stops,
    // then the hub.
    if (engine_ != nullptr) engine_->Stop();
    if (hub_ != nullptr) hub_->Stop();
    // The other ranks leave with one that has served; where the start failed, or all are to start again, they lose it
    // and come back with it.
    if (has_served_ && !starts_again_ && ranks_ != nullptr) ranks_->SayFarewell();
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
  absl::Status StartHub(const Topology& topology, const ProcessPlan& plan);
  void StartAgents(const Topology& topology, const ProcessPlan& plan);
  void StartAgent(const std::string& router, const ProcessPlan& plan);
  // The reason to refuse a link, if there is one.
  std::optional<LinkRefusedMessage> CheckHello(const HelloMessage& hello) const;

  // SessionHandler, on the server's thread.
  void OnCommands(SessionId session, CommandFrame frame) override {
    if (draining_) sessions_.RefuseStarts(session, frame);
    engine_->Post(
        [this, session, frame = std::move(frame)](Engine& engine) { worker_->OnCommands(engine, session, frame); });
  }
  void OnSessionClosed(SessionId session) override {
    engine_->Post([this, session](Engine& engine) { worker_->OnSessionClosed(engine, session); });
  }
  // ReceiverEvents, on the link thread.
  void OnHello(int64_t connection, const HelloMessage& hello) override {
    engine_->Post([this, connection, hello](Engine&) {
      if (hello.writes_over) worker_->OnWritesOver(hello.incarnation);
      if (std::optional<LinkRefusedMessage> refusal = CheckHello(hello); refusal.has_value()) {
        LogWarning("link refused", {{"peer", hello.worker_id}, {"reason", refusal->reason}});
        hub_->Refuse(connection, *refusal);
      } else {
        hub_->Accept(connection);
      }
    });
  }
  void OnPeerUp(const HelloMessage& hello) override {
    engine_->Post([this, hello](Engine&) { worker_->OnPeerUp(hello); });
  }
  void OnPeerLost(Incarnation peer, bool writes_over) override {
    engine_->Post([this, peer, writes_over](Engine&) { worker_->OnPeerLost(peer, writes_over); });
  }
  void OnWritesOver(Incarnation peer) override {
    engine_->Post([this, peer](Engine&) { worker_->OnWritesOver(peer); });
  }
  void OnMessage(Incarnation peer, const LinkMessage& message) override {
    engine_->Post([this, peer, message](Engine& engine) { worker_->OnLinkMessage(engine, peer, message); });
  }

  const Incarnation incarnation_{DrawRandomId()};
  PeerTrust trust_;
  std::atomic<bool> draining_ = false, starts_again_ = false;
  HelloMessage hello_;
  MetricsServer metrics_server_;
  std::unique_ptr<DecodeMetrics> metrics_;
  std::unique_ptr<RankGroup> ranks_;  // Null: there is one.
  bool has_served_ = false;
  std::unique_ptr<WorkerPool> pool_;
  SessionServer sessions_{*this};
  std::unique_ptr<EngineHandoverPages> pages_;
  std::unique_ptr<KvReceiver> receiver_;
  std::unique_ptr<DecodeWorker> worker_;
  std::unique_ptr<EngineThread> engine_;
  std::unique_ptr<WorkerReporter> reporter_;
  std::unique_ptr<ReceiverHub> hub_;
  std::unique_ptr<SessionService> service_;
  std::unique_ptr<ServerRunner> server_;
  std::vector<std::unique_ptr<WorkerAgent>> agents_;  // One for each router.
};

absl::Status DecodeParts::Build(const Topology& topology, const ProcessPlan& plan) {
  // First of all, so that a port that is taken shows before the model is loaded.
  RETURN_IF_ERROR(metrics_server_.Listen(plan.metrics_address));
  ASSIGN_OR_RETURN(trust_, ReadPeerTrust(topology));
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(topology.model.path));
  Engine::Options engine_options = EngineOptions(topology, plan);
  if (engine_options.shard.size > 1) {
    LogInfo("waiting for the other ranks", {{"ranks", engine_options.shard.size}});
    const EndOnSignal end_on_signal;
    ASSIGN_OR_RETURN(ranks_, RankGroup::Join(RankOptions(topology, plan)));
    engine_options.ranks = ranks_.get();
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                   Engine::Create(std::move(checkpoint), engine_options, Clock::Real()));
  ASSIGN_OR_RETURN(
      pool_, WorkerPool::Create(
                 {.gpu = plan.gpu, .bytes = static_cast<uint64_t>(engine->layout().pool_bytes() + kTestAreaBytes)}));
  engine->SetKvMemory(pool_->base());
  RETURN_IF_ERROR(engine->WarmUp());
  metrics_ = std::make_unique<DecodeMetrics>(metrics_server_);
  pages_ = std::make_unique<EngineHandoverPages>(*engine);
  receiver_ =
      std::make_unique<KvReceiver>(KvReceiver::Options{}, engine->layout(), pool_->base(), *pages_, pool_->memory());
  worker_ = std::make_unique<DecodeWorker>(
      Clock::Real(), *receiver_, *metrics_,
      [this](int64_t session, EventFrame events) { sessions_.Send(session, std::move(events)); },
      [this](Incarnation peer, LinkMessage message) { hub_->Send(peer, std::move(message)); });
  hello_ = MakeHello(plan.name, incarnation_, engine->layout(), engine->fingerprint(), topology.links.checksums,
                     trust_.secret);
  EngineThread::Hooks hooks;
  hooks.on_events = [this](Engine&, std::vector<SequenceEvent> events) { worker_->OnEngineEvents(std::move(events)); };
  hooks.on_turn = [this](Engine&) { worker_->OnTurn(); };
  engine_ = std::make_unique<EngineThread>(std::move(engine), std::move(hooks));
  reporter_ = std::make_unique<WorkerReporter>(*engine_);
  RETURN_IF_ERROR(StartHub(topology, plan));
  service_ = NewDecodeService(sessions_);
  ASSIGN_OR_RETURN(server_, ServerRunner::Start(plan.service_address, {service_->hosted()}, trust_));
  service_->Start(server_->loop());
  server_->StartThread();
  StartAgents(topology, plan);
  LogInfo("serving", {{"address", server_->address()},
                      {"link_port", hub_->port()},
                      {"metrics_port", metrics_server_.port()},
                      {"kv_pages", engine_->engine().layout().num_pages},
                      {"pid", getpid()}});
  has_served_ = true;
  return absl::OkStatus();
}

absl::Status DecodeParts::StartHub(const Topology& topology, const ProcessPlan& plan) {
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Transport>> transports,
                   pool_->MakeTransports(topology.links.transports));
  ReceiverHub::Options options;
  options.hello = hello_;
  options.listen = plan.link_address;
  if (trust_.tls != nullptr) {
    ASSIGN_OR_RETURN(options.tls, TlsContext::ForServer(*trust_.tls, TlsContext::Peer::kProcess));
  }
  options.pool = pool_->base();
  options.memory = &pool_->memory();
  options.heartbeat = topology.links.heartbeat;
  options.missed_heartbeats = topology.links.missed_heartbeats;
  ASSIGN_OR_RETURN(hub_, ReceiverHub::Create(std::move(options), std::move(transports), *this));
  hub_->Start();
  return absl::OkStatus();
}

std::optional<LinkRefusedMessage> DecodeParts::CheckHello(const HelloMessage& hello) const {
  if (receiver_->IsFenced(hello.incarnation)) {
    return LinkRefusedMessage{
        .reason = "pages that this process was writing to when its link was lost wait for its end",
        .must_restart = true};
  }
  if (absl::Status status = CheckHellos(hello, hello_); !status.ok()) {
    return LinkRefusedMessage{std::string(status.message())};
  }
  return std::nullopt;
}

void DecodeParts::StartAgents(const Topology& topology, const ProcessPlan& plan) {
  for (const std::string& router : topology.RouterAddresses()) StartAgent(router, plan);
}

void DecodeParts::StartAgent(const std::string& router, const ProcessPlan& plan) {
  const Engine& engine = engine_->engine();
  WorkerAgent::Options options;
  options.router_address = router;
  const std::string host = plan.link_address.substr(0, plan.link_address.rfind(':'));
  options.registration = {.worker_id = plan.name,
                          .incarnation = incarnation_,
                          .role = Role::kDecode,
                          .service_address = server_->address(),
                          .link_address = absl::StrCat(host, ":", hub_->port()),
                          .domain = plan.domain,
                          .model_fingerprint = engine.fingerprint(),
                          .total_pages = engine.layout().num_pages,
                          .page_tokens = engine.layout().page_tokens,
                          .max_context_tokens = engine.max_context_tokens(),
                          .page_bytes = engine.layout().page_bytes()};
  options.collect = [this, router](bool restart) {
    WorkerHeartbeat heartbeat = reporter_->Collect(router, restart);
    int total = 0, quarantined = 0;
    for (const auto& [state, count] : heartbeat.pages) {
      total += count;
      if (state == PageStateName(PageState::kQuarantined)) quarantined = count;
    }
    if (heartbeat.state == "ready" && quarantined > total * kMaxQuarantinedShare) heartbeat.state = "degraded";
    metrics_->SetEngine(heartbeat);
    return heartbeat;
  };
  options.on_directive = [this, router](const RouterDirective& directive) {
    if (directive.tell_all) reporter_->TellAllAgain(router);
    if (!directive.drain) return;
    const bool was_draining = draining_.exchange(true);
    starts_again_ = directive.start_again && (!was_draining || starts_again_);  // Who says "leave" wins.
    if (!was_draining) RequestTermination();
  };
  options.on_lost = [this, router] { reporter_->Forget(router); };
  agents_.push_back(std::make_unique<WorkerAgent>(server_->loop(), std::move(options)));
}

}  // namespace

absl::StatusOr<ProcessNeeds> DecodeProcess::Check(const Topology& topology, const ProcessPlan& plan) {
  // Those for GPUs can be made on one only.
  const absl::Status status =
      plan.gpu.has_value() ? absl::OkStatus() : MakeTransports(topology.links.transports, nullptr).status();
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(topology.file, ": ", status.message()));
  }
  return CheckWorker(topology, plan);
}

absl::StatusOr<std::unique_ptr<DecodeProcess>> DecodeProcess::Start(const Topology& topology, const ProcessPlan& plan) {
  return DecodeParts::Start(topology, plan);
}

}  // namespace tandem
