#include "common/rpc/completion_loop.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <utility>

#include "common/clock.h"
#include "common/log.h"

namespace tandem {
namespace {

constexpr int kMaxEvents = 256;
constexpr absl::Duration kBetweenRefusals = absl::Seconds(10);  // That are told of.

// When an alarm is to ring that has nothing to wait for. "Now" would be rounded up to gRPC's next millisecond, and be
// left to its timer thread.
gpr_timespec AtOnce() { return gpr_inf_past(GPR_CLOCK_MONOTONIC); }

}  // namespace

class CompletionLoop::WakeEvent final : public CompletionEvent {
 public:
  void OnCompletion(bool) override { pending.store(false, std::memory_order_release); }
  std::atomic<bool> pending = false;
};

// Comes through the queue, so that this is not shut down before the order to stop was put there.
class CompletionLoop::StopEvent final : public CompletionEvent {
 public:
  void OnCompletion(bool) override { came = true; }
  bool came = false;  // The handling thread's.
};

CompletionLoop::CompletionLoop(std::unique_ptr<grpc::ServerCompletionQueue> queue, PeerTrust trust)
    : queue_(std::move(queue)),
      trust_(std::move(trust)),
      wake_(std::make_unique<WakeEvent>()),
      stop_(std::make_unique<StopEvent>()) {}

CompletionLoop::~CompletionLoop() = default;

void CompletionLoop::Wake() {
  if (!wake_->pending.exchange(true, std::memory_order_acq_rel)) {
    wake_alarm_.Set(queue_.get(), AtOnce(), static_cast<CompletionEvent*>(wake_.get()));
  }
}

void CompletionLoop::TellRefusal(const std::string& peer, const std::string& cause) {
  ++refusals_;
  const absl::Time now = Clock::Real().Now();
  if (now - refusal_told_ < kBetweenRefusals) return;
  LogWarning("peer refused", {{"peer", peer}, {"cause", cause}, {"refusals", refusals_}});
  refusal_told_ = now;
  refusals_ = 0;
}

void CompletionLoop::Handle(void* tag, bool ok) {
  static_cast<CompletionEvent*>(tag)->OnCompletion(ok);
  turn_hold_.EndTurn();
}

void CompletionLoop::WaitAndHandle(absl::Duration timeout) {
  turn_hold_.EndTurn();  // What the caller has written between two calls.
  const int64_t microseconds = std::max<int64_t>(0, absl::ToInt64Microseconds(timeout));
  gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_micros(microseconds, GPR_TIMESPAN));
  void* tag = nullptr;
  bool ok = false;
  for (int i = 0; i < kMaxEvents && queue_->AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT; ++i) {
    Handle(tag, ok);
    deadline = gpr_time_0(GPR_CLOCK_MONOTONIC);
  }
}

void CompletionLoop::Stop() { stop_alarm_.Set(queue_.get(), AtOnce(), static_cast<CompletionEvent*>(stop_.get())); }

void CompletionLoop::HandleUntilStopped() {
  void* tag = nullptr;
  bool ok = false;
  // Each use ends with an event, and Stop brings one.
  while (!stop_->came || uses_ > 0) {
    if (queue_->Next(&tag, &ok)) Handle(tag, ok);
  }
  queue_->Shutdown();
  while (queue_->Next(&tag, &ok)) Handle(tag, ok);
}

}  // namespace tandem
