#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <memory>

#include "absl/time/time.h"

namespace tandem {

// Something that a completion queue reports; its address is the tag.
class CompletionEvent {
 public:
  virtual ~CompletionEvent() = default;
  virtual void OnCompletion(bool ok) = 0;
};

// A gRPC completion queue as the waiting place of one owner thread: its calls' events are handled
// on that thread, with no hop to another, and Wake ends a wait.
//
// Thread-safety: Wake from any thread; WaitAndHandle and Drain from one thread at a time.
// Ownership: owns the queue; borrows the events, which live until they were reported.
class CompletionLoop {
 public:
  explicit CompletionLoop(std::unique_ptr<grpc::ServerCompletionQueue> queue);
  ~CompletionLoop();

  grpc::ServerCompletionQueue* queue() { return queue_.get(); }
  // Waits up to `timeout` for a first event, then handles all that are there.
  void WaitAndHandle(absl::Duration timeout);
  void Wake();
  // Handles events until the queue, which Shutdown must have been called on, is empty.
  void Drain();
  void Shutdown() { queue_->Shutdown(); }

 private:
  class WakeEvent;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  const std::unique_ptr<WakeEvent> wake_;
  grpc::Alarm alarm_;
};

}  // namespace tandem
