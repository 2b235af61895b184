#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mailbox.h"
#include "common/topology.h"
#include "common/worker_messages.h"
#include "common/worker_state.h"
#include "model/tokenizer.h"
#include "router/admission.h"
#include "router/cluster_view.h"
#include "router/decision_log.h"
#include "router/request_session.h"
#include "router/router_metrics.h"
#include "router/tracing.h"

namespace tandem {

// The command stream to one worker.
//
// Thread-safety: called on the owner thread.
class WorkerClient {
 public:
  virtual ~WorkerClient() = default;
  virtual void Send(const CommandFrame& frame) = 0;
};

// Where the owner thread waits when it has nothing to do, and handles what happens there.
//
// Thread-safety: Wake from any thread.
class OwnerWait {
 public:
  virtual ~OwnerWait() = default;
  virtual void WaitAndHandle(absl::Duration timeout) = 0;
  virtual void Wake() = 0;
};

// What the core needs from the outside. Called on the owner thread; must not block.
class RouterOutside {
 public:
  virtual ~RouterOutside() = default;
  // Opens the command stream to a worker; its events come to OnWorkerEvents, its fate to
  // OnWorkerSession.
  virtual std::unique_ptr<WorkerClient> Connect(const WorkerRegistration& registration) = 0;
  // Tells a registered worker what to do.
  virtual void Direct(Incarnation worker, const RouterDirective& directive) = 0;
  // Ends a worker's registration stream: it was replaced or declared lost.
  virtual void Expel(Incarnation worker, const std::string& reason) = 0;
  // What a call's time went into, where it is traced.
  virtual void Export(std::vector<Span> spans) = 0;
  // A turn of the owner thread is over: sinks were told all that it brought.
  virtual void EndTurn() = 0;
};

// The router's heart: owns the cluster view and all sessions, on one thread.
//
// Thread-safety: thread-safe; calls are posted to the owner thread.
// Ownership: owns the thread, sessions and worker clients. Borrows the rest, which outlives it.
class RouterCore {
 public:
  struct Options {
    int64_t max_active_requests = 256;
    int max_retries = 3;
    absl::Duration worker_timeout = absl::Seconds(1);
    absl::Duration stuck_timeout = absl::Seconds(10);
    absl::Duration placement_timeout = absl::Seconds(10);
    bool split = true;                   // The topology has prefill pools.
    int conditional_prefill_tokens = 0;  // As PlacementRequest has it.
    PlacementPolicy placement = PlacementPolicy::kPredicted;
    bool random_ties = false;             // Else PlacementRequest::random is 0.
    bool access_log = false;              // A log line for each call that ends.
    std::vector<ApiKeySettings> tenants;  // As ApiKeys has them.
    uint64_t model_fingerprint = 0;
    int model_context_tokens = 0;
    bool exports_spans = false;
    double trace_share = 0;  // Of the calls that belong to no trace.
  };
  RouterCore(const Options& options, const Tokenizer& tokenizer, RouterMetrics& metrics, RouterOutside& outside,
             const Clock& clock);
  ~RouterCore();
  // Starts the owner thread, which waits at `wait` (not owned), or, if that is null, for calls
  // only.
  void Start(OwnerWait* wait = nullptr);
  // Fails all requests there are with UNAVAILABLE.
  void FailAll();
  // As FailAll, and joins: nothing that is posted later runs. Idempotent.
  void Stop();

  // A client's call. Its sink gets everything that follows.
  void Submit(std::shared_ptr<const Request> request);
  // Not OK: a call would be refused now, whatever it wants. From any thread, at once.
  absl::Status CheckRoom() const { return admission_.CheckRoom(); }
  // Counts and logs a call that was refused before it became a request. `name`: empty where it has none yet.
  void CountRefused(const std::string& name, Tenant tenant, const absl::Status& status);
  // Ends a call: its client is gone. Nothing when it ended already.
  void CancelCall(std::shared_ptr<const Request> request);
  // Ends a call by its name; `done` gets OK or NOT_FOUND.
  void CancelByName(const std::string& name, std::function<void(absl::Status)> done);

  // `done` gets why a request went where it went, oldest first, each with how long ago; nothing when it is not known.
  void Explain(const std::string& name,
               std::function<void(const std::vector<std::pair<absl::Duration, std::string>>&)> done);

  // `done` gets INVALID_ARGUMENT when the worker runs another model.
  void OnRegister(const WorkerRegistration& registration, std::function<void(absl::Status)> done);
  void OnHeartbeat(Incarnation worker, const WorkerHeartbeat& heartbeat);
  void OnWorkerGone(Incarnation worker, const std::string& reason);
  void OnWorkerSession(Incarnation worker, bool up);
  void OnWorkerEvents(Incarnation worker, EventFrame frame);
  void Drain(const std::string& worker_id, bool start_again, std::function<void(absl::Status)> done);

  // Prompt plus output of a request that the workers can take now; the model's own where there are none.
  int max_context_tokens() const { return max_context_tokens_; }

  // Runs `work` on the owner thread.
  void Run(absl::AnyInvocable<void()> work) { Post(std::move(work)); }
  // Runs `read` with the view, the number of active requests, and whether requests can be placed.
  void ReadState(std::function<void(const ClusterView&, int64_t active, bool ready)> read);

 private:
  struct Call {
    std::shared_ptr<const Request> request;
    int open_samples = 0;
    RequestUsage usage;
    absl::Status status;
  };
  struct Session {
    std::unique_ptr<RequestSession> machine;
    Call* call;
    int hit_tokens = 0;  // Of its last placement, where the prompt is computed.
    bool is_waiting = false;
  };
  void Main();
  void Post(absl::AnyInvocable<void()> work);
  void SubmitNow(std::shared_ptr<const Request> request);
  void CancelCallNow(const Request* request);
  // A worker that is lost is dropped from the view with its legs; then its sessions are told.
  void LoseWorker(Incarnation worker, const std::string& reason);
  void DropWorker(Incarnation worker, const std::string& reason);
  void DirectPrefillWorkers();
  void NoteContext();
  void ExportSpans(const Request& request, const absl::Status& status, const RequestUsage& usage);
  void Tick();
  // Carries out what a session wants, places it if need be, and drops it when it is over.
  void Apply(Session* session, SessionActions actions);
  void TryPlace(Session* session);
  void PlaceWaiting();
  void StopWaiting(Session* session);
  void End(Session* session, const absl::Status& status);
  // The last word on a call: counted, logged and told.
  void FinishCall(const Request& request, const absl::Status& status, const RequestUsage& usage);
  const char* NameOf(Tenant tenant) const { return tenant == kAnyone ? "" : options_.tenants[tenant].name.c_str(); }
  // The open legs, with what they add to their workers' counts.
  struct LegEntry {
    Session* session;
    LegKind kind;
    Incarnation worker;
    int64_t prefill_tokens;  // That it was predicted to compute before its first token; 0 after that.
    int64_t prompt_tokens;
    absl::Time started;
    QueuePlace place;
    bool is_decoding = false;
  };
  void OpenLeg(RequestId id, const LegEntry& entry);
  void CountFirstToken(LegEntry& entry, const LegEvent& event, absl::Time now);
  void CountDecoding(LegEntry& entry);
  void CloseLeg(RequestId id);
  void FlushCommands();

  uint64_t placements_ = 0;  // So far; the owner thread only.
  const Options options_;
  const Tokenizer& tokenizer_;
  RouterMetrics& metrics_;
  RouterOutside& outside_;
  const Clock& clock_;
  Mailbox<absl::AnyInvocable<void()>> inbox_;

  // Set by Start; calls may be posted before.
  std::atomic<OwnerWait*> wait_ = nullptr;
  std::atomic<std::thread::id> owner_ = std::thread::id();
  // Owner thread only.
  std::atomic<int> max_context_tokens_;
  ClusterView view_;
  Admission admission_;
  absl::flat_hash_map<Incarnation, std::unique_ptr<WorkerClient>> clients_;
  absl::flat_hash_map<const Request*, std::unique_ptr<Call>> calls_;
  absl::flat_hash_map<std::string, Call*> calls_by_name_;
  absl::flat_hash_map<Session*, std::unique_ptr<Session>> sessions_;
  absl::flat_hash_map<RequestId, LegEntry> legs_;
  std::multimap<QueuePlace, Session*> waiting_;              // For placement.
  absl::flat_hash_map<Incarnation, CommandFrame> commands_;  // Of this turn.
  DecisionLog decisions_;
  absl::Time next_tick_;
  std::thread thread_;
};

}  // namespace tandem
