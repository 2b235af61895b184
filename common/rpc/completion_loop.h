#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/rpc/peer_trust.h"
#include "common/rpc/server_connections.h"

namespace tandem {

// Something that a completion queue reports; its address is the tag.
class CompletionEvent {
 public:
  virtual ~CompletionEvent() = default;
  virtual void OnCompletion(bool ok) = 0;
};

// A completion that calls a method of its owner, of which it is a member.
template <typename Owner>
class MemberEvent final : public CompletionEvent {
 public:
  MemberEvent(Owner& owner, void (Owner::*handler)(bool ok)) : owner_(owner), handler_(handler) {}
  void OnCompletion(bool ok) override { (owner_.*handler_)(ok); }
  // What gRPC gets as the tag.
  void* tag() { return static_cast<CompletionEvent*>(this); }

 private:
  Owner& owner_;
  void (Owner::*const handler_)(bool ok);
};

// A gRPC completion queue as the waiting place of one owner thread: its calls' events are handled
// on that thread, with no hop to another, and Wake ends a wait.
//
// It is also the only place of a process where gRPC is waited for: each further thread that waits in gRPC competes for
// the sockets' events and hands every second one over to the thread that it belongs to.
//
// Thread-safety: Wake and Stop from any thread; WaitAndHandle and HandleUntilStopped from one thread at a time.
// Ownership: owns the queue; borrows the events, which live until they were reported.
class CompletionLoop {
 public:
  // Held by everything that may begin an operation on the queue, until it never will again: the queue is shut down
  // after the last one.
  class Use {
   public:
    Use() = default;
    explicit Use(CompletionLoop& loop) : loop_(&loop) { ++loop.uses_; }
    Use(Use&& other) noexcept : loop_(std::exchange(other.loop_, nullptr)) {}
    Use& operator=(Use&& other) noexcept {
      std::swap(loop_, other.loop_);
      return *this;
    }
    ~Use() { End(); }
    void End() {
      if (loop_ != nullptr) --std::exchange(loop_, nullptr)->uses_;
    }

   private:
    CompletionLoop* loop_ = nullptr;
  };

  // `trust`: of the streams between the cluster's processes.
  CompletionLoop(std::unique_ptr<grpc::ServerCompletionQueue> queue, PeerTrust trust);
  ~CompletionLoop();

  grpc::ServerCompletionQueue* queue() { return queue_.get(); }
  const PeerTrust& trust() const { return trust_; }
  // Logs that a process was refused: the first time, and then one line in ten seconds for all. By the handling thread.
  void TellRefusal(const std::string& peer, const std::string& cause);
  // Its turns end with each event that was handled, and before each wait.
  TurnHold& turn_hold() { return turn_hold_; }
  // Waits up to `timeout` for a first event, then handles those that are there: some hundred at most, since callers
  // have other things to do, too.
  void WaitAndHandle(absl::Duration timeout);
  void Wake();
  // No call begins any more, and those there are end by themselves: after the server's shutdown.
  void Stop();
  // Handles events until Stop was called and the last use has ended; then shuts the queue down.
  void HandleUntilStopped();

 private:
  class WakeEvent;
  class StopEvent;
  void Handle(void* tag, bool ok);

  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  const PeerTrust trust_;
  const std::unique_ptr<WakeEvent> wake_;
  const std::unique_ptr<StopEvent> stop_;
  TurnHold turn_hold_;
  std::atomic<int> uses_ = 0;
  absl::Time refusal_told_ = absl::InfinitePast();
  int refusals_ = 0;  // Since then.
  grpc::Alarm wake_alarm_, stop_alarm_;
};

}  // namespace tandem
