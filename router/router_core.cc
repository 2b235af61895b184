#include "router/router_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/error_reason.h"
#include "common/log.h"

namespace tandem {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(20);
constexpr size_t kLongestLoggedName = 256;

}  // namespace

RouterCore::RouterCore(const Options& options, const Tokenizer& tokenizer, RouterMetrics& metrics,
                       RouterOutside& outside, const Clock& clock)
    : options_(options),
      tokenizer_(tokenizer),
      metrics_(metrics),
      outside_(outside),
      clock_(clock),
      max_context_tokens_(options.model_context_tokens),
      admission_(options.max_active_requests, options.tenants),
      next_tick_(clock.Now()) {}

void RouterCore::Start(OwnerWait* wait) {
  wait_ = wait;
  thread_ = std::thread([this] { Main(); });
}

void RouterCore::Post(absl::AnyInvocable<void()> work) {
  if (!inbox_.Push(std::move(work))) return;  // Stopped: what it waited at may be gone.
  // The owner thread looks into its inbox before it waits.
  OwnerWait* wait = wait_.load();
  if (wait != nullptr && std::this_thread::get_id() != owner_.load()) wait->Wake();
}

RouterCore::~RouterCore() { Stop(); }

void RouterCore::FailAll() {
  Post([this] {
    std::vector<Session*> all;
    for (auto& [key, session] : sessions_) all.push_back(key);
    for (Session* session : all) {
      if (!sessions_.contains(session)) continue;  // A sample of a call that failed before.
      SessionActions actions = session->machine->OnCancel(clock_.Now());
      actions.finished = absl::UnavailableError("the router is shutting down");
      Apply(session, std::move(actions));
    }
    FlushCommands();
  });
}

void RouterCore::Stop() {
  FailAll();
  Post([this] { inbox_.Close(); });
  if (thread_.joinable()) thread_.join();
}

void RouterCore::Main() {
  owner_ = std::this_thread::get_id();
  OwnerWait* const wait = wait_.load();
  while (true) {
    std::vector<absl::AnyInvocable<void()>> posted =
        inbox_.TakeAll(wait == nullptr ? next_tick_ - clock_.Now() : absl::ZeroDuration());
    for (auto& work : posted) work();
    if (clock_.Now() >= next_tick_) {
      Tick();
      next_tick_ = clock_.Now() + kTick;
    }
    FlushCommands();
    outside_.EndTurn();
    if (inbox_.closed()) break;
    if (wait != nullptr && posted.empty()) wait->WaitAndHandle(next_tick_ - clock_.Now());
  }
  clients_.clear();
}

// --- Clients ---

void RouterCore::Submit(std::shared_ptr<const Request> request) {
  Post([this, request = std::move(request)]() mutable { SubmitNow(std::move(request)); });
}

void RouterCore::CountRefused(const std::string& name, Tenant tenant, const absl::Status& status) {
  if (options_.access_log) {
    // Nobody has checked it yet.
    const bool is_name =
        name.size() <= kLongestLoggedName && std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
    LogInfo("request ended", {{"request", is_name ? name : ""},
                              {"outcome", absl::StatusCodeToString(status.code())},
                              {"tenant", NameOf(tenant)},
                              {"error", status.message()}});
  }
  // Only its code crosses: ThreadSanitizer does not see how Debian's abseil counts a shared status.
  Post([this, code = status.code()] { metrics_.CountRequest(absl::Status(code, "")); });
}

void RouterCore::SubmitNow(std::shared_ptr<const Request> request) {
  const absl::Time now = clock_.Now();
  absl::Status admitted = admission_.Admit(request->tenant, request->num_samples, now);
  if (admitted.ok() && calls_by_name_.contains(request->name)) {
    for (int i = 0; i < request->num_samples; ++i) admission_.Release(request->tenant, now);
    admitted = absl::AlreadyExistsError(absl::StrCat("request_id: \"", request->name, "\" is running already"));
  }
  if (!admitted.ok()) {
    FinishCall(*request, admitted, {});
    return;
  }
  auto owned_call = std::make_unique<Call>();
  Call* call = owned_call.get();
  call->request = request;
  call->open_samples = request->num_samples;
  calls_[request.get()] = std::move(owned_call);
  calls_by_name_[request->name] = call;
  RequestSession::Options options{options_.max_retries, options_.placement_timeout, options_.split};
  std::vector<Session*> started;
  for (int sample = 0; sample < request->num_samples; ++sample) {
    auto session = std::make_unique<Session>();
    session->machine = std::make_unique<RequestSession>(options, *request, sample, tokenizer_, now);
    session->call = call;
    started.push_back(session.get());
    sessions_[session.get()] = std::move(session);
  }
  for (Session* session : started) {
    if (sessions_.contains(session)) Apply(session, session->machine->Begin());
  }
}

void RouterCore::CancelCall(std::shared_ptr<const Request> request) {
  Post([this, request = std::move(request)] { CancelCallNow(request.get()); });
}

void RouterCore::CancelCallNow(const Request* request) {
  auto call = calls_.find(request);
  if (call == calls_.end()) return;
  std::vector<Session*> samples;
  for (auto& [key, session] : sessions_) {
    if (session->call == call->second.get()) samples.push_back(key);
  }
  // The end of one sample ends the others.
  for (Session* session : samples) {
    if (sessions_.contains(session)) Apply(session, session->machine->OnCancel(clock_.Now()));
  }
}

void RouterCore::CancelByName(const std::string& name, std::function<void(absl::Status)> done) {
  Post([this, name, done = std::move(done)] {
    auto call = calls_by_name_.find(name);
    if (call == calls_by_name_.end()) {
      done(absl::NotFoundError(absl::StrCat("request_id: no request \"", name, "\" is running here")));
      return;
    }
    CancelCallNow(call->second->request.get());
    done(absl::OkStatus());
  });
}

void RouterCore::Explain(const std::string& name,
                         std::function<void(const std::vector<std::pair<absl::Duration, std::string>>&)> done) {
  Post([this, name, done = std::move(done)] {
    std::vector<std::pair<absl::Duration, std::string>> answer;
    for (Decision& decision : decisions_.Find(name)) {
      answer.emplace_back(clock_.Now() - decision.at, std::move(decision.what));
    }
    done(answer);
  });
}

// --- Workers ---

void RouterCore::OnRegister(const WorkerRegistration& registration, std::function<void(absl::Status)> done) {
  Post([this, registration, done = std::move(done)] {
    if (registration.model_fingerprint != options_.model_fingerprint) {
      done(absl::InvalidArgumentError(absl::StrCat("model_fingerprint: worker ", registration.worker_id, " runs ",
                                                   registration.model_fingerprint, ", this router serves ",
                                                   options_.model_fingerprint)));
      return;
    }
    // The same process may register again when its stream broke before this side saw it.
    if (view_.Find(registration.incarnation) != nullptr) DropWorker(registration.incarnation, "it registered again");
    Incarnation replaced = view_.Register(registration, clock_.Now());
    if (replaced.is_set()) LoseWorker(replaced, "its process was started anew");
    NoteContext();
    LogInfo("worker registered", {{"worker", registration.worker_id},
                                  {"role", RoleName(registration.role)},
                                  {"address", registration.service_address},
                                  {"pages", registration.total_pages}});
    clients_[registration.incarnation] = outside_.Connect(registration);
    done(absl::OkStatus());
    // The first directive tells a worker that it is registered.
    outside_.Direct(registration.incarnation, {.peers = view_.DecodePeers()});
    if (registration.role == Role::kDecode) DirectPrefillWorkers();
  });
}

void RouterCore::OnHeartbeat(Incarnation worker, const WorkerHeartbeat& heartbeat) {
  Post([this, worker, heartbeat] {
    if (!view_.OnHeartbeat(worker, heartbeat, clock_.Now())) {
      outside_.Direct(worker, {.peers = view_.DecodePeers(), .tell_all = true});
    }
    PlaceWaiting();
  });
}

void RouterCore::OnWorkerGone(Incarnation worker, const std::string& reason) {
  Post([this, worker, reason] { LoseWorker(worker, reason); });
}

void RouterCore::OnWorkerSession(Incarnation worker, bool up) {
  Post([this, worker, up] {
    if (up) {
      view_.SetSessionUp(worker, true);
      PlaceWaiting();
    } else {
      LoseWorker(worker, "its command stream broke");
    }
  });
}

void RouterCore::LoseWorker(Incarnation worker, const std::string& reason) {
  if (view_.Find(worker) == nullptr) return;
  outside_.Expel(worker, reason);
  DropWorker(worker, reason);
}

void RouterCore::NoteContext() {
  const int of_workers = view_.MaxContextTokens();
  max_context_tokens_ = of_workers > 0 ? of_workers : options_.model_context_tokens;
}

void RouterCore::DropWorker(Incarnation worker, const std::string& reason) {
  const WorkerView* lost = view_.Find(worker);
  const bool was_decode = lost->registration.role == Role::kDecode;
  const bool has_work =
      std::any_of(legs_.begin(), legs_.end(), [&](const auto& entry) { return entry.second.worker == worker; });
  if (lost->heartbeat.state == "draining" && !has_work) {
    LogInfo("worker left", {{"worker", lost->registration.worker_id}, {"reason", reason}});
  } else {
    LogWarning("worker lost", {{"worker", lost->registration.worker_id}, {"reason", reason}});
    metrics_.CountWorkerLost(lost->registration.worker_id);
  }
  view_.Remove(worker);
  NoteContext();
  clients_.erase(worker);
  commands_.erase(worker);
  // Events of it that are on their way belong to no session any more.
  absl::erase_if(legs_, [&](const auto& entry) { return entry.second.worker == worker; });
  if (was_decode) DirectPrefillWorkers();
  std::vector<Session*> hit;
  for (auto& [key, session] : sessions_) {
    if (session->machine->prefill_worker() == worker || session->machine->decode_worker() == worker) hit.push_back(key);
  }
  for (Session* session : hit) {
    if (sessions_.contains(session)) Apply(session, session->machine->OnWorkerLost(worker, clock_.Now()));
  }
}

void RouterCore::DirectPrefillWorkers() {
  RouterDirective directive{.peers = view_.DecodePeers()};
  for (const auto& [incarnation, worker] : view_.workers()) {
    if (worker.registration.role == Role::kPrefill) outside_.Direct(incarnation, directive);
  }
}

void RouterCore::OnWorkerEvents(Incarnation worker, EventFrame frame) {
  Post([this, worker, frame = std::move(frame)]() mutable {
    const absl::Time now = clock_.Now();
    int decoded = 0;  // Requests that got a token of a decode step.
    for (LegEvent& event : frame.events) {
      auto leg = legs_.find(event.id);
      if (leg == legs_.end() || leg->second.worker != worker) continue;  // Of a leg that was closed.
      Session* session = leg->second.session;
      const LegKind kind = leg->second.kind;
      const RequestId id = event.id;
      if (!event.tokens.empty()) {
        if (leg->second.prefill_tokens > 0) {
          CountFirstToken(leg->second, event, now);
        } else {
          ++decoded;
          CountDecoding(leg->second);
        }
      }
      if (event.finish != LegFinish::kNone || !event.error.ok()) CloseLeg(id);
      // It says so before its next heartbeat does, until which its requests would go there again and again.
      if (WorkerView* view = view_.Find(worker);
          view != nullptr && GetErrorReason(event.error) == ErrorReason::kWorkerDraining) {
        view->heartbeat.state = "draining";
      }
      Apply(session, session->machine->OnLegEvent(kind, std::move(event), now));
    }
    if (WorkerView* view = view_.Find(worker); view != nullptr && decoded > 0) {
      view->speed.OnDecodeStep(decoded, view->decoding_legs, now);
    }
  });
}

void RouterCore::Drain(const std::string& worker_id, bool start_again, std::function<void(absl::Status)> done) {
  Post([this, worker_id, start_again, done = std::move(done)] {
    const WorkerView* worker = view_.FindByName(worker_id);
    if (worker == nullptr) {
      done(absl::NotFoundError(absl::StrCat("worker_id: no worker \"", worker_id, "\" is registered")));
      return;
    }
    outside_.Direct(worker->registration.incarnation,
                    {.peers = view_.DecodePeers(), .drain = true, .start_again = start_again});
    done(absl::OkStatus());
  });
}

void RouterCore::ReadState(std::function<void(const ClusterView&, int64_t, bool)> read) {
  Post([this, read = std::move(read)] { read(view_, admission_.active(), view_.Ready(options_.split)); });
}

// --- Sessions ---

void RouterCore::OpenLeg(RequestId id, const LegEntry& entry) {
  legs_[id] = entry;
  if (WorkerView* worker = view_.Find(entry.worker); worker != nullptr) {
    ++worker->legs;
    worker->AddPrefillTokens(entry.place, entry.prefill_tokens);
  }
}

void RouterCore::CountFirstToken(LegEntry& entry, const LegEvent& event, absl::Time now) {
  if (WorkerView* worker = view_.Find(entry.worker); worker != nullptr) {
    worker->AddPrefillTokens(entry.place, -entry.prefill_tokens);
    worker->speed.OnFirstToken(static_cast<double>(entry.prompt_tokens - event.cached_tokens), entry.started, now);
  }
  entry.prefill_tokens = 0;
}

void RouterCore::CountDecoding(LegEntry& entry) {
  if (std::exchange(entry.is_decoding, true)) return;
  if (WorkerView* worker = view_.Find(entry.worker); worker != nullptr) ++worker->decoding_legs;
}

void RouterCore::CloseLeg(RequestId id) {
  auto entry = legs_.find(id);
  if (entry == legs_.end()) return;
  if (WorkerView* worker = view_.Find(entry->second.worker); worker != nullptr) {
    --worker->legs;
    worker->decoding_legs -= entry->second.is_decoding ? 1 : 0;
    worker->AddPrefillTokens(entry->second.place, -entry->second.prefill_tokens);
  }
  legs_.erase(entry);
}

void RouterCore::Apply(Session* session, SessionActions actions) {
  if (actions.down_link.has_value()) view_.SetLinkDown(actions.down_link->first, actions.down_link->second);
  for (auto& [worker, start] : actions.starts) {
    const bool is_prefill = start.id == session->machine->prefill_leg();
    const bool computes_prompt = is_prefill || !start.handover.is_set();
    const auto tokens = static_cast<int64_t>(start.tokens.size());
    OpenLeg(start.id, {session, is_prefill ? LegKind::kPrefill : LegKind::kDecode, worker,
                       computes_prompt ? std::max<int64_t>(1, tokens - session->hit_tokens) : 0, tokens, clock_.Now(),
                       session->call->request->place()});
    commands_[worker].starts.push_back(std::move(start));
  }
  for (auto& [worker, cancel] : actions.cancels) {
    if (!cancel.retarget.is_set()) CloseLeg(cancel.id);
    if (view_.Find(worker) != nullptr) commands_[worker].cancels.push_back(std::move(cancel));
  }
  if (actions.has_update) {
    metrics_.ObserveUpdate(actions.update);
    session->call->request->sink->Write(std::move(actions.update));
  }
  if (actions.finished.has_value()) {
    End(session, *actions.finished);
  } else if (actions.needs_placement) {
    TryPlace(session);
  }
}

void RouterCore::TryPlace(Session* session) {
  PlacementRequest request = session->machine->placement_request();
  request.conditional_prefill_tokens = options_.conditional_prefill_tokens;
  request.policy = options_.placement;
  request.turn = placements_++;
  if (options_.random_ties) request.random = DrawRandomId();
  absl::StatusOr<Placement> placement = Place(view_, request);
  if (placement.ok()) {
    session->hit_tokens = placement->prefill.is_set() ? placement->prefill_hit_tokens : placement->decode_hit_tokens;
  }
  decisions_.Add(session->machine->name(), clock_.Now(),
                 placement.ok() ? placement->reason : absl::StrCat("waits: ", placement.status().message()));
  Apply(session, session->machine->OnPlaced(placement, view_, clock_.Now()));
  if (!sessions_.contains(session)) return;
  if (!session->machine->waits_for_placement()) {
    StopWaiting(session);
  } else if (!std::exchange(session->is_waiting, true)) {
    waiting_.emplace(session->call->request->place(), session);
  }
}

void RouterCore::StopWaiting(Session* session) {
  if (!std::exchange(session->is_waiting, false)) return;
  const auto [begin, end] = waiting_.equal_range(session->call->request->place());
  waiting_.erase(std::find_if(begin, end, [session](const auto& entry) { return entry.second == session; }));
}

void RouterCore::PlaceWaiting() {
  if (waiting_.empty()) return;
  std::vector<Session*> in_order;
  for (const auto& [place, session] : waiting_) in_order.push_back(session);
  for (Session* session : in_order) {
    if (sessions_.contains(session)) TryPlace(session);
  }
}

void RouterCore::End(Session* session, const absl::Status& status) {
  const absl::Time now = clock_.Now();
  Call* call = session->call;
  RequestUsage usage = session->machine->usage();
  metrics_.ObserveEnd(usage, status);
  call->usage.prompt_tokens = usage.prompt_tokens;
  call->usage.completion_tokens += usage.completion_tokens;
  call->usage.longest_sample = std::max(call->usage.longest_sample, usage.completion_tokens);
  call->usage.cached_tokens = std::max(call->usage.cached_tokens, usage.cached_tokens);
  call->usage.retries += usage.retries;
  call->usage.stages = usage.stages;
  call->usage.prefill_worker = usage.prefill_worker;
  call->usage.decode_worker = usage.decode_worker;
  if (call->status.ok()) call->status = status;
  CloseLeg(session->machine->prefill_leg());
  CloseLeg(session->machine->decode_leg());
  StopWaiting(session);
  admission_.Release(call->request->tenant, now);
  sessions_.erase(session);
  if (--call->open_samples > 0) {
    // One failed sample fails the call: the others end, too.
    if (!status.ok()) CancelCallNow(call->request.get());
    return;
  }
  FinishCall(*call->request, call->status, call->usage);
  calls_by_name_.erase(call->request->name);
  calls_.erase(call->request.get());
}

void RouterCore::ExportSpans(const Request& request, const absl::Status& status, const RequestUsage& usage) {
  TraceContext trace = request.trace;
  if (!trace.is_set()) {
    constexpr uint64_t kSteps = 1'000'000;
    if (static_cast<double>(DrawRandomId() % kSteps) >= options_.trace_share * kSteps) return;
    trace = NewTrace();
  }
  if (!trace.is_sampled) return;
  const absl::Time now = clock_.Now();
  outside_.Export(SpansOf(request, trace, status, usage, now, absl::Now() - now));
}

void RouterCore::FinishCall(const Request& request, const absl::Status& status, const RequestUsage& usage) {
  metrics_.ObserveCall(request, usage, status);
  if (options_.exports_spans) ExportSpans(request, status, usage);
  if (options_.access_log) {
    LogInfo("request ended", {{"request", request.name},
                              {"outcome", absl::StatusCodeToString(status.code())},
                              {"prompt_tokens", request.prompt.size()},
                              {"cached_tokens", usage.cached_tokens},
                              {"output_tokens", usage.completion_tokens},
                              {"ms", absl::ToInt64Milliseconds(clock_.Now() - request.arrival)},
                              {"prefill", usage.prefill_worker},
                              {"decode", usage.decode_worker},
                              {"retries", usage.retries},
                              {"trace", request.trace.trace_id},
                              {"tenant", NameOf(request.tenant)},
                              {"error", status.message()}});
  }
  request.sink->Finish(status, usage);
}

void RouterCore::Tick() {
  const absl::Time now = clock_.Now();
  for (Incarnation worker : view_.Lost(now, options_.worker_timeout, options_.stuck_timeout)) {
    LoseWorker(worker, "it was silent or stood still");
  }
  std::vector<Session*> all;
  for (auto& [key, session] : sessions_) all.push_back(key);
  for (Session* session : all) {
    if (sessions_.contains(session)) Apply(session, session->machine->OnTick(now));
  }
  PlaceWaiting();
  metrics_.SetState(view_, admission_.active(), static_cast<int64_t>(waiting_.size()));
}

void RouterCore::FlushCommands() {
  for (auto& [worker, frame] : commands_) {
    auto client = clients_.find(worker);
    if (client != clients_.end() && client->second != nullptr) client->second->Send(frame);
  }
  commands_.clear();
}

}  // namespace tandem
