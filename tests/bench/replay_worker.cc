// A prefill and a decode worker without a model: they register, say that they are linked, and
// replay tokens. They are the load behind router_bench, so that the router's own cost shows.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/process.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/session_server.h"
#include "common/rpc/worker_agent.h"
#include "decode/decode_service.h"
#include "model/checkpoint.h"
#include "prefill/prefill_service.h"

namespace tandem {
namespace {

constexpr TokenId kToken = 504;

// Answers starts at once with a first token and a hand-over.
class ReplayPrefill final : public SessionHandler {
 public:
  void OnCommands(SessionId session, CommandFrame frame) override {
    EventFrame events;
    for (const StartLeg& start : frame.starts) {
      const bool last = start.sampling.max_tokens == 1;
      events.events.push_back(
          {.id = start.id, .tokens = {{.token = kToken}}, .finish = last ? LegFinish::kLength : LegFinish::kNone});
      if (!last)
        events.events.push_back({.id = start.id, .finish = LegFinish::kHandedOver, .handover = start.handover});
    }
    if (!events.events.empty()) sessions_.Send(session, std::move(events));
  }
  void OnSessionClosed(SessionId) override {}
  SessionServer sessions_{*this};
};

// Sends one frame per interval with a token of every running request.
class ReplayDecode final : public SessionHandler {
 public:
  explicit ReplayDecode(absl::Duration interval) : interval_(interval), thread_([this] { Main(); }) {}
  ~ReplayDecode() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }
  void OnCommands(SessionId session, CommandFrame frame) override {
    absl::MutexLock lock(&mu_);
    for (const StartLeg& start : frame.starts) running_[start.id] = {session, start.sampling.max_tokens - 1};
    for (const CancelLeg& cancel : frame.cancels) running_.erase(cancel.id);
  }
  void OnSessionClosed(SessionId) override {
    absl::MutexLock lock(&mu_);
    running_.clear();
  }
  SessionServer sessions_{*this};

 private:
  struct Leg {
    SessionId session;
    int left;
  };
  void Main() {
    while (true) {
      std::map<SessionId, EventFrame> frames;
      {
        absl::MutexLock lock(&mu_);
        if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), interval_)) return;
        for (auto entry = running_.begin(); entry != running_.end();) {
          Leg& leg = entry->second;
          LegEvent event{.id = entry->first, .tokens = {{.token = kToken}}, .taken_over = true};
          if (--leg.left <= 0) event.finish = LegFinish::kLength;
          frames[leg.session].events.push_back(std::move(event));
          entry = leg.left <= 0 ? running_.erase(entry) : std::next(entry);
        }
      }
      for (auto& [session, frame] : frames) sessions_.Send(session, std::move(frame));
    }
  }
  const absl::Duration interval_;
  absl::Mutex mu_;
  std::map<RequestId, Leg> running_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

int Run(const std::string& router, const std::string& model, absl::Duration interval) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  ExitUnlessOk(checkpoint.status());
  ReplayPrefill prefill;
  ReplayDecode decode(interval);
  std::unique_ptr<SessionService> prefill_service = NewPrefillService(prefill.sessions_);
  std::unique_ptr<SessionService> decode_service = NewDecodeService(decode.sessions_);
  auto server = ServerRunner::Start("127.0.0.1:0", {prefill_service->hosted(), decode_service->hosted()});
  ExitUnlessOk(server.status());
  prefill_service->Start((*server)->loop());
  decode_service->Start((*server)->loop());
  (*server)->StartThread();
  WorkerRegistration registration{.worker_id = "replay-prefill",
                                  .incarnation = Incarnation(DrawRandomId()),
                                  .role = Role::kPrefill,
                                  .service_address = (*server)->address(),
                                  .link_address = "127.0.0.1:1",
                                  .model_fingerprint = (*checkpoint)->Fingerprint(Precision::kQuantised),
                                  .total_pages = 1 << 20,
                                  .page_tokens = 16,
                                  .max_context_tokens = 1 << 20};
  WorkerRegistration decode_registration = registration;
  decode_registration.worker_id = "replay-decode";
  decode_registration.role = Role::kDecode;
  decode_registration.incarnation = Incarnation(DrawRandomId());
  auto heartbeat = [links =
                        std::vector<LinkReport>{
                            {.peer_worker = "replay-decode", .peer = decode_registration.incarnation, .up = true}},
                    sequence = int64_t{0}](bool restart) mutable {
    sequence = restart ? 1 : sequence + 1;
    return WorkerHeartbeat{.free_pages = 1 << 20, .turns = sequence, .links = links, .sequence = sequence};
  };
  auto ignore = [](const RouterDirective&) {};
  WorkerAgent decode_agent((*server)->loop(),
                           {router, decode_registration, absl::Milliseconds(250), heartbeat, ignore});
  WorkerAgent prefill_agent((*server)->loop(), {router, registration, absl::Milliseconds(250), heartbeat, ignore});
  AwaitTermination();
  prefill.sessions_.Close();
  decode.sessions_.Close();
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: replay_worker ROUTER MODEL TOKEN_INTERVAL_MS\n");
    return 2;
  }
  tandem::StartProcess();
  return tandem::Run(argv[1], argv[2], absl::Milliseconds(atoi(argv[3])));
}
