#include "engine/engine_thread.h"

#include "absl/time/time.h"

namespace tandem {
namespace {

constexpr absl::Duration kIdleTurn = absl::Milliseconds(20);

}  // namespace

EngineThread::EngineThread(std::unique_ptr<Engine> engine, Hooks hooks)
    // Posted work is bounded by what routers may start and what the links report of it, so no bound
    // here.
    : engine_(std::move(engine)), hooks_(std::move(hooks)) {
  PublishStats();
  thread_ = std::thread([this] { Main(); });
}

EngineThread::~EngineThread() { Stop(); }

bool EngineThread::Post(absl::AnyInvocable<void(Engine&)> work) { return inbox_.Push(std::move(work)); }

bool EngineThread::AwaitCondition(std::function<bool()> condition, absl::Duration timeout) {
  // Co-owners: this call and the posted work, which may run after it gave up.
  struct Answer {
    absl::Mutex mu;
    bool known ABSL_GUARDED_BY(mu) = false, value ABSL_GUARDED_BY(mu) = false;
  };
  const absl::Time deadline = Clock::Real().Now() + timeout;
  do {
    auto answer = std::make_shared<Answer>();
    bool posted = Post([answer, condition](Engine&) {
      absl::MutexLock lock(&answer->mu);
      answer->value = condition();
      answer->known = true;
    });
    if (!posted) return false;
    absl::MutexLock lock(&answer->mu);
    if (!answer->mu.AwaitWithTimeout(absl::Condition(&answer->known), timeout)) return false;
    if (answer->value) return true;
    answer->known = false;  // Nothing sets it again: a pause of one idle turn.
    answer->mu.AwaitWithTimeout(absl::Condition(&answer->known), kIdleTurn);
  } while (Clock::Real().Now() < deadline);
  return false;
}

void EngineThread::Stop() {
  inbox_.Close();
  if (thread_.joinable()) thread_.join();
}

void EngineThread::Main() {
  auto progress = [this](const KvProgress& done) {
    if (hooks_.on_progress) hooks_.on_progress(*engine_, done);
  };
  while (!inbox_.closed()) {
    for (auto& work : inbox_.TakeAll(engine_->HasWork() ? absl::ZeroDuration() : kIdleTurn)) work(*engine_);
    if (engine_->HasWork()) {
      int64_t steps = engine_->num_steps();
      std::vector<SequenceEvent> events = engine_->Step(progress);
      if (!events.empty() && hooks_.on_events) hooks_.on_events(*engine_, std::move(events));
      // Sequences wait for pages that somebody else must free: no need to look again at once.
      if (engine_->num_steps() == steps && engine_->HasWork()) {
        for (auto& work : inbox_.TakeAll(absl::Milliseconds(1))) work(*engine_);
      }
    }
    if (hooks_.on_turn) hooks_.on_turn(*engine_);
    PublishStats();
  }
}

void EngineThread::PublishStats() {
  EngineStats stats;
  const StepScheduler& scheduler = engine_->scheduler();
  stats.running = scheduler.num_running();
  stats.waiting = scheduler.num_waiting();
  stats.held = engine_->num_held();
  stats.waiting_tokens = scheduler.waiting_tokens();
  stats.turns = ++turns_;
  stats.preemptions = scheduler.preemptions();
  const PagePool& pool = engine_->cache().pool();
  for (int i = 0; i < kNumPageStates; ++i) {
    PageState state = static_cast<PageState>(i);
    stats.pages.emplace_back(std::string(PageStateName(state)), pool.count(state));
  }
  stats.free_pages = pool.available();
  PrefixIndex::Changes changes = engine_->cache().index().TakeChanges();
  absl::MutexLock lock(&mu_);
  stats.prefix_changes = std::move(stats_.prefix_changes);
  for (const auto& [hash, held] : changes) stats.prefix_changes[hash] = held;
  stats_ = std::move(stats);
}

EngineStats EngineThread::TakeStats() {
  absl::MutexLock lock(&mu_);
  EngineStats stats = stats_;
  stats_.prefix_changes = {};
  return stats;
}

}  // namespace tandem
