// Prefill and decode workers without a model: they register, say that they are linked, and replay a token. They are
// the load behind router_load, so that the router's own cost shows. With a pace, their capacity is known; with a prefix
// cache, what placement makes of it is seen without anything being computed.
//
//   replay_worker ROUTER MODEL [--token_interval=5ms] [--prefill=100ms] [--prefill_rate=20000] ...
//
// MODEL is the router's: only its fingerprint is used.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/page_hash.h"
#include "common/process.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/session_server.h"
#include "common/rpc/worker_agent.h"
#include "decode/decode_service.h"
#include "model/checkpoint.h"
#include "prefill/prefill_service.h"

ABSL_FLAG(absl::Duration, token_interval, absl::Milliseconds(5), "Between two tokens of a request.");
ABSL_FLAG(absl::Duration, prefill, absl::ZeroDuration(), "What each prompt takes.");
ABSL_FLAG(double, prefill_rate, 0, "Tokens a second at which prompts are computed beside that; 0: at once.");
ABSL_FLAG(int, prefill_at_once, 0, "Prompts of a worker that go on at once; others wait in their order. 0: all.");
ABSL_FLAG(int, decode_at_once, 0, "The same of its answers.");
ABSL_FLAG(int, cached_pages, 0, "Of each prefill worker's prefix cache, which keeps those that were used last.");
ABSL_FLAG(int, page_tokens, 16, "Of a page.");
ABSL_FLAG(int, pairs, 1, "How many workers of each kind.");
ABSL_FLAG(absl::Duration, heartbeat, absl::Milliseconds(250), "Between two reports to the router.");

namespace tandem {
namespace {

constexpr TokenId kToken = 504;

size_t AtOnce(int flag) { return flag > 0 ? static_cast<size_t>(flag) : std::numeric_limits<size_t>::max(); }

// Which hand-overs have been made, and not been taken.
class Handovers {
 public:
  void Make(HandoverId handover) {
    absl::MutexLock lock(&mu_);
    made_.insert(handover);
  }
  bool Take(HandoverId handover) {
    absl::MutexLock lock(&mu_);
    return made_.erase(handover) > 0;
  }

 private:
  absl::Mutex mu_;
  std::set<HandoverId> made_ ABSL_GUARDED_BY(mu_);
};

// The pages that a worker used last, by their hashes. Not thread-safe.
class PrefixCache {
 public:
  // Of a prompt with these pages, the first ones that it has.
  size_t HitPages(const std::vector<uint64_t>& hashes) const {
    size_t hits = 0;
    while (hits < hashes.size() && places_.contains(hashes[hits])) ++hits;
    return hits;
  }
  void Use(const std::vector<uint64_t>& hashes) {
    // The beginning of a prompt stays longest: without it the rest is worth nothing.
    for (auto hash = hashes.rbegin(); hash != hashes.rend(); ++hash) {
      const auto [place, is_new] = places_.try_emplace(*hash);
      if (is_new) {
        stored_.push_back(*hash);
      } else {
        by_use_.erase(place->second);
      }
      by_use_.push_front(*hash);
      place->second = by_use_.begin();
    }
    while (by_use_.size() > static_cast<size_t>(absl::GetFlag(FLAGS_cached_pages))) {
      dropped_.push_back(by_use_.back());
      places_.erase(by_use_.back());
      by_use_.pop_back();
    }
  }
  // What changed since the last report, or all there is.
  void Report(bool all, WorkerHeartbeat& heartbeat) {
    if (all) {
      stored_.assign(by_use_.begin(), by_use_.end());
      dropped_.clear();
    }
    heartbeat.stored_hashes = std::exchange(stored_, {});
    heartbeat.dropped_hashes = std::exchange(dropped_, {});
    // What came and went since the last report.
    std::erase_if(heartbeat.stored_hashes, [&](uint64_t hash) { return !places_.contains(hash); });
    std::erase_if(heartbeat.dropped_hashes, [&](uint64_t hash) { return places_.contains(hash); });
  }

 private:
  std::list<uint64_t> by_use_;
  absl::flat_hash_map<uint64_t, std::list<uint64_t>::iterator> places_;
  std::vector<uint64_t> stored_, dropped_;
};

// Calls `turn` again and again, `pause` apart, on a thread of its own.
class Turns {
 public:
  Turns(absl::Duration pause, std::function<void()> turn)
      : thread_([this, pause, turn = std::move(turn)] {
          while (!Stopped(pause)) turn();
        }) {}
  ~Turns() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }

 private:
  bool Stopped(absl::Duration pause) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&stopping_), pause);
  }
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// A worker as the router sees it, less what its kind does.
class Worker : public SessionHandler {
 public:
  SessionServer& sessions() { return sessions_; }
  virtual WorkerHeartbeat Report(bool all) = 0;

 protected:
  SessionServer sessions_{*this};
};

// Answers starts with a first token and a hand-over, when their time has passed.
class ReplayPrefill final : public Worker {
 public:
  explicit ReplayPrefill(Handovers& handovers) : handovers_(handovers) {
    if (takes_time_) turns_.emplace(absl::Milliseconds(1), [this] { Turn(); });
  }
  void OnCommands(SessionId session, CommandFrame frame) override {
    if (!takes_time_) {
      EventFrame events;
      for (const StartLeg& start : frame.starts) Answer(start, /*cached_tokens=*/0, events);
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
  WorkerHeartbeat Report(bool all) override {
    absl::MutexLock lock(&mu_);
    WorkerHeartbeat heartbeat;
    for (const Leg& leg : legs_) {
      ++(leg.done < absl::InfiniteFuture() ? heartbeat.running_requests : heartbeat.waiting_requests);
      heartbeat.queued_prompt_tokens += static_cast<int64_t>(leg.start.tokens.size()) - leg.cached_tokens;
    }
    cache_.Report(all, heartbeat);
    return heartbeat;
  }

 private:
  struct Leg {
    SessionId session;
    StartLeg start;
    absl::Time done = absl::InfiniteFuture();  // Once it goes on.
    int cached_tokens = 0;
  };
  void Answer(const StartLeg& start, int cached_tokens, EventFrame& events) {
    const bool last = start.sampling.max_tokens == 1;
    events.events.push_back({.id = start.id,
                             .tokens = {{.token = kToken}},
                             .finish = last ? LegFinish::kLength : LegFinish::kNone,
                             .cached_tokens = cached_tokens});
    if (last) return;
    events.events.push_back({.id = start.id, .finish = LegFinish::kHandedOver, .handover = start.handover});
    handovers_.Make(start.handover);
  }
  void Begin(Leg& leg, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const int tokens = static_cast<int>(leg.start.tokens.size());
    if (absl::GetFlag(FLAGS_cached_pages) > 0) {
      const int page_tokens = absl::GetFlag(FLAGS_page_tokens);
      const std::vector<uint64_t> hashes = ChainedPageHashes(leg.start.tokens, page_tokens);
      // The last token is always computed.
      leg.cached_tokens = std::min(static_cast<int>(cache_.HitPages(hashes)) * page_tokens, tokens - 1);
      cache_.Use(hashes);
    }
    const double rate = absl::GetFlag(FLAGS_prefill_rate);
    leg.done = now + absl::GetFlag(FLAGS_prefill);
    if (rate > 0) leg.done += absl::Seconds((tokens - leg.cached_tokens) / rate);
  }
  void Turn() {
    std::map<SessionId, EventFrame> frames;
    {
      absl::MutexLock lock(&mu_);
      const absl::Time now = absl::Now();
      std::erase_if(legs_, [&](const Leg& leg) {
        if (leg.done > now) return false;
        Answer(leg.start, leg.cached_tokens, frames[leg.session]);
        return true;
      });
      for (size_t i = 0; i < std::min(legs_.size(), AtOnce(absl::GetFlag(FLAGS_prefill_at_once))); ++i) {
        if (legs_[i].done == absl::InfiniteFuture()) Begin(legs_[i], now);
      }
    }
    for (auto& [session, frame] : frames) sessions_.Send(session, std::move(frame));
  }

  const bool takes_time_ = absl::GetFlag(FLAGS_prefill) > absl::ZeroDuration() || absl::GetFlag(FLAGS_prefill_rate) > 0;
  Handovers& handovers_;
  absl::Mutex mu_;
  std::vector<Leg> legs_ ABSL_GUARDED_BY(mu_);  // In the order of their coming.
  PrefixCache cache_ ABSL_GUARDED_BY(mu_);
  std::optional<Turns> turns_;  // Where it takes time.
};

// Sends one frame per interval with a token of every request that goes on: once its prefill has handed it over.
class ReplayDecode final : public Worker {
 public:
  explicit ReplayDecode(Handovers& handovers)
      : handovers_(handovers), turns_(absl::GetFlag(FLAGS_token_interval), [this] { Turn(); }) {}
  void OnCommands(SessionId session, CommandFrame frame) override {
    absl::MutexLock lock(&mu_);
    for (const StartLeg& start : frame.starts) {
      legs_.push_back({session, start.id, start.handover, start.sampling.max_tokens - 1});
    }
    for (const CancelLeg& cancel : frame.cancels) {
      std::erase_if(legs_, [&](const Leg& leg) { return leg.id == cancel.id; });
    }
  }
  void OnSessionClosed(SessionId session) override {
    absl::MutexLock lock(&mu_);
    std::erase_if(legs_, [&](const Leg& leg) { return leg.session == session; });
  }
  WorkerHeartbeat Report(bool) override {
    absl::MutexLock lock(&mu_);
    WorkerHeartbeat heartbeat;
    for (const Leg& leg : legs_) ++(leg.has_kv ? heartbeat.running_requests : heartbeat.waiting_requests);
    return heartbeat;
  }

 private:
  struct Leg {
    SessionId session;
    RequestId id;
    HandoverId handover;
    int left;
    bool has_kv = false;
  };
  void Turn() {
    std::map<SessionId, EventFrame> frames;
    {
      absl::MutexLock lock(&mu_);
      size_t room = AtOnce(absl::GetFlag(FLAGS_decode_at_once));
      for (Leg& leg : legs_) {
        if (!leg.has_kv && !(leg.has_kv = handovers_.Take(leg.handover))) continue;
        if (room == 0) break;
        --room;
        LegEvent event{.id = leg.id, .tokens = {{.token = kToken}}, .taken_over = true};
        if (--leg.left <= 0) event.finish = LegFinish::kLength;
        frames[leg.session].events.push_back(std::move(event));
      }
      std::erase_if(legs_, [](const Leg& leg) { return leg.left <= 0; });
    }
    for (auto& [session, frame] : frames) sessions_.Send(session, std::move(frame));
  }

  Handovers& handovers_;
  absl::Mutex mu_;
  std::vector<Leg> legs_ ABSL_GUARDED_BY(mu_);  // In the order of their coming.
  Turns turns_;
};

// A worker with its server and its word to the router.
class Served {
 public:
  Served(const std::string& router, WorkerRegistration registration, std::vector<LinkReport> links,
         std::unique_ptr<Worker> worker)
      : worker_(std::move(worker)),
        service_(registration.role == Role::kPrefill ? NewPrefillService(worker_->sessions())
                                                     : NewDecodeService(worker_->sessions())) {
    auto server = ServerRunner::Start("127.0.0.1:0", {service_->hosted()});
    ExitUnlessOk(server.status());
    server_ = *std::move(server);
    service_->Start(server_->loop());
    server_->StartThread();
    registration.service_address = server_->address();
    auto collect = [this, links = std::move(links), sequence = int64_t{0}](bool restart) mutable {
      sequence = restart ? 1 : sequence + 1;
      WorkerHeartbeat heartbeat = worker_->Report(restart);
      heartbeat.free_pages = 1 << 20;
      heartbeat.turns = heartbeat.sequence = sequence;
      heartbeat.links = links;
      return heartbeat;
    };
    agent_ = std::make_unique<WorkerAgent>(
        server_->loop(), WorkerAgent::Options{router, registration, absl::GetFlag(FLAGS_heartbeat), std::move(collect),
                                              [](const RouterDirective&) {}});
  }
  ~Served() {
    agent_.reset();
    worker_->sessions().Close();
  }

 private:
  const std::unique_ptr<Worker> worker_;
  const std::unique_ptr<SessionService> service_;
  std::unique_ptr<ServerRunner> server_;
  std::unique_ptr<WorkerAgent> agent_;
};

int Run(const std::string& router, const std::string& model) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  ExitUnlessOk(checkpoint.status());
  WorkerRegistration registration{.link_address = "127.0.0.1:1",
                                  .model_fingerprint = (*checkpoint)->Fingerprint(Precision::kQuantised),
                                  .total_pages = 1 << 20,
                                  .page_tokens = absl::GetFlag(FLAGS_page_tokens),
                                  .max_context_tokens = 1 << 20};
  Handovers handovers;
  std::vector<std::unique_ptr<Served>> workers;
  std::vector<LinkReport> links;
  for (const Role role : {Role::kDecode, Role::kPrefill}) {
    for (int i = 0; i < absl::GetFlag(FLAGS_pairs); ++i) {
      registration.role = role;
      registration.worker_id = absl::StrCat("replay-", RoleName(role), "-", i);
      registration.incarnation = Incarnation(DrawRandomId());
      std::unique_ptr<Worker> worker;
      if (role == Role::kDecode) {
        worker = std::make_unique<ReplayDecode>(handovers);
        links.push_back({.peer_worker = registration.worker_id, .peer = registration.incarnation, .up = true});
      } else {
        worker = std::make_unique<ReplayPrefill>(handovers);
      }
      workers.push_back(std::make_unique<Served>(
          router, registration, role == Role::kPrefill ? links : std::vector<LinkReport>(), std::move(worker)));
    }
  }
  AwaitTermination();
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  tandem::StartProcess();
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 3) {
    fprintf(stderr, "usage: replay_worker ROUTER MODEL [flags; --help lists them]\n");
    return 2;
  }
  return tandem::Run(arguments[1], arguments[2]);
}
