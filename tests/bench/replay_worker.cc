// A prefill and a decode worker without a model: they register, say that they are linked, and
// replay tokens. They are the load behind router_load, so that the router's own cost shows; with a time for prefill and
// a number of requests that go on at once, their capacity is known.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
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

struct Pace {
  absl::Duration prefill;         // Zero: answered at once.
  absl::Duration token_interval;  // Of each request.
  size_t at_once;                 // Requests of each worker; others wait in their order.
};

// Sends one frame per interval with a token of every request that goes on: once its prefill has handed it over.
class ReplayDecode final : public SessionHandler {
 public:
  explicit ReplayDecode(const Pace& pace) : pace_(pace), thread_([this] { Main(); }) {}
  ~ReplayDecode() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }
  void OnCommands(SessionId session, CommandFrame frame) override {
    absl::MutexLock lock(&mu_);
    for (const StartLeg& start : frame.starts) {
      Leg leg = {session, start.id, start.handover, start.sampling.max_tokens - 1};
      (early_.erase(start.handover) > 0 ? legs_ : waiting_).push_back(leg);
    }
    for (const CancelLeg& cancel : frame.cancels) {
      std::erase_if(waiting_, [&](const Leg& leg) { return leg.id == cancel.id; });
      std::erase_if(legs_, [&](const Leg& leg) { return leg.id == cancel.id; });
    }
  }
  void OnSessionClosed(SessionId session) override {
    absl::MutexLock lock(&mu_);
    std::erase_if(waiting_, [&](const Leg& leg) { return leg.session == session; });
    std::erase_if(legs_, [&](const Leg& leg) { return leg.session == session; });
  }
  void OnHandedOver(HandoverId handover) {
    absl::MutexLock lock(&mu_);
    const auto leg = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const Leg& waiting) { return waiting.handover == handover; });
    if (leg == waiting_.end()) {
      early_.insert(handover);
      return;
    }
    legs_.push_back(*leg);
    waiting_.erase(leg);
  }
  SessionServer sessions_{*this};

 private:
  struct Leg {
    SessionId session;
    RequestId id;
    HandoverId handover;
    int left;
  };
  void Main() {
    while (true) {
      std::map<SessionId, EventFrame> frames;
      {
        absl::MutexLock lock(&mu_);
        if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), pace_.token_interval)) return;
        for (size_t i = 0; i < std::min(legs_.size(), pace_.at_once); ++i) {
          Leg& leg = legs_[i];
          LegEvent event{.id = leg.id, .tokens = {{.token = kToken}}, .taken_over = true};
          if (--leg.left <= 0) event.finish = LegFinish::kLength;
          frames[leg.session].events.push_back(std::move(event));
        }
        std::erase_if(legs_, [](const Leg& leg) { return leg.left <= 0; });
      }
      for (auto& [session, frame] : frames) sessions_.Send(session, std::move(frame));
    }
  }
  const Pace pace_;
  absl::Mutex mu_;
  std::vector<Leg> waiting_ ABSL_GUARDED_BY(mu_);
  std::set<HandoverId> early_ ABSL_GUARDED_BY(mu_);  // Handed over, and not started here yet.
  std::vector<Leg> legs_ ABSL_GUARDED_BY(mu_);       // In the order of their hand-over.
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// Answers starts with a first token and a hand-over, when their time has passed.
class ReplayPrefill final : public SessionHandler {
 public:
  ReplayPrefill(const Pace& pace, ReplayDecode& decode) : pace_(pace), decode_(decode), thread_([this] { Main(); }) {}
  ~ReplayPrefill() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }
  void OnCommands(SessionId session, CommandFrame frame) override {
    if (pace_.prefill == absl::ZeroDuration()) {
      EventFrame events;
      for (const StartLeg& start : frame.starts) Answer(start, events);
      if (!events.events.empty()) sessions_.Send(session, std::move(events));
      return;
    }
    absl::MutexLock lock(&mu_);
    for (StartLeg& start : frame.starts) legs_.push_back({session, std::move(start)});
    for (const CancelLeg& cancel : frame.cancels) {
      std::erase_if(legs_, [&](const Leg& leg) { return leg.start.id == cancel.id; });
    }
  }
  void OnSessionClosed(SessionId session) override {
    absl::MutexLock lock(&mu_);
    std::erase_if(legs_, [&](const Leg& leg) { return leg.session == session; });
  }
  SessionServer sessions_{*this};

 private:
  struct Leg {
    SessionId session;
    StartLeg start;
    absl::Time done = absl::InfiniteFuture();  // Once it goes on.
  };
  void Answer(const StartLeg& start, EventFrame& events) {
    const bool last = start.sampling.max_tokens == 1;
    events.events.push_back(
        {.id = start.id, .tokens = {{.token = kToken}}, .finish = last ? LegFinish::kLength : LegFinish::kNone});
    if (last) return;
    events.events.push_back({.id = start.id, .finish = LegFinish::kHandedOver, .handover = start.handover});
    decode_.OnHandedOver(start.handover);
  }
  void Main() {
    while (true) {
      std::map<SessionId, EventFrame> frames;
      {
        absl::MutexLock lock(&mu_);
        if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::Milliseconds(1))) return;
        const absl::Time now = absl::Now();
        std::erase_if(legs_, [&](const Leg& leg) {
          if (leg.done > now) return false;
          Answer(leg.start, frames[leg.session]);
          return true;
        });
        for (size_t i = 0; i < std::min(legs_.size(), pace_.at_once); ++i) {
          if (legs_[i].done == absl::InfiniteFuture()) legs_[i].done = now + pace_.prefill;
        }
      }
      for (auto& [session, frame] : frames) sessions_.Send(session, std::move(frame));
    }
  }
  const Pace pace_;
  ReplayDecode& decode_;
  absl::Mutex mu_;
  std::vector<Leg> legs_ ABSL_GUARDED_BY(mu_);  // In the order of their coming.
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

int Run(const std::string& router, const std::string& model, const Pace& pace) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  ExitUnlessOk(checkpoint.status());
  ReplayDecode decode(pace);
  ReplayPrefill prefill(pace, decode);
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
  if (argc != 4 && argc != 6) {
    fprintf(stderr, "usage: replay_worker ROUTER MODEL TOKEN_INTERVAL_MS [PREFILL_MS REQUESTS_AT_ONCE]\n");
    return 2;
  }
  tandem::StartProcess();
  const tandem::Pace pace = {
      .prefill = absl::Milliseconds(argc == 6 ? atoi(argv[4]) : 0),
      .token_interval = absl::Milliseconds(atoi(argv[3])),
      .at_once = argc == 6 ? static_cast<size_t>(atoi(argv[5])) : std::numeric_limits<size_t>::max(),
  };
  return tandem::Run(argv[1], argv[2], pace);
}
