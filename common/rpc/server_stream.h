#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/async_stream.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/completion_loop.h"
#include "common/rpc/peer_trust.h"

namespace tandem {

// One call of a bidirectional method that a completion loop serves: from waiting for a client to gRPC's last event.
// Messages that wait behind a write in flight become one.
//
// Thread-safety: Send and Finish from any thread; the hooks come on the loop's thread, one at a time, under no lock.
// mu_ is held while nothing but gRPC's own non-blocking calls and `fill` are made.
// Ownership: made by std::make_shared; keeps itself alive from Await until OnClosed has returned.
template <typename In, typename Out>
class ServerStream : public std::enable_shared_from_this<ServerStream<In, Out>> {
 public:
  using Rpc = grpc::ServerAsyncReaderWriter<Out, In>;
  using RequestNext =
      std::function<void(grpc::ServerContext*, Rpc*, grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*)>;

  enum class Reading {
    kAhead,         // Messages come as they arrive.
    kAfterAnswers,  // The next one is read when all that was sent is written: no two answers become one.
  };

  explicit ServerStream(Reading reading = Reading::kAhead) : reading_mode_(reading), rpc_(&context_) {}
  virtual ~ServerStream() = default;

  // Waits for a client. `request_next`: the service's generated Request method. Never opens when the server shuts
  // down first.
  void Await(CompletionLoop& loop, const RequestNext& request_next) {
    self_ = this->shared_from_this();
    use_ = CompletionLoop::Use(loop);
    loop_ = &loop;
    context_.AsyncNotifyWhenDone(done_.tag());
    request_next(&context_, &rpc_, loop.queue(), loop.queue(), requested_.tag());
  }
  // Adds to the message that waits to be sent, which is empty or was filled since the last write. Nothing after
  // Finish or the call's end.
  void Send(absl::FunctionRef<void(Out&)> fill) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (ending_) return;
    fill(pending_);
    has_pending_ = true;
    WriteNextLocked();
  }
  // Ends the call when what was sent is written.
  void Finish(const grpc::Status& status) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (std::exchange(ending_, true)) return;
    final_status_ = status;
    WriteNextLocked();
  }

 protected:
  // A client is there; the place to await the next one.
  virtual void OnOpen() = 0;
  virtual void OnMessage(In& message) = 0;
  // Whether the client must be a process of this cluster; the call ends otherwise, without a message.
  virtual bool IsForProcesses() const { return true; }
  // An opened call is over; nothing follows.
  virtual void OnClosed() {}

 private:
  void OnRequested(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    if (!ok) {  // The server shuts down: there was no client, and OnDone never comes.
      use_.End();
      self_.reset();
      return;
    }
    {
      absl::MutexLock lock(&mu_);
      open_ = 2;  // This and OnDone.
    }
    OnOpen();
    if (IsForProcesses()) {
      if (const std::optional<grpc::Status> refusal = RefusalOfPeer(context_, loop_->trust())) {
        loop_->TellRefusal(context_.peer(), refusal->error_message());
        Finish(*refusal);
      }
    }
    {
      absl::MutexLock lock(&mu_);
      ReadNextLocked();
    }
    EndOne();
  }
  void OnRead(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    if (ok) {
      OnMessage(incoming_);
      incoming_.Clear();
      absl::MutexLock lock(&mu_);
      reading_ = false;
      ReadNextLocked();
    } else {
      Finish(grpc::Status::OK);  // The client has said all, or is gone.
    }
    EndOne();
  }
  void OnWritten(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
      if (!ok) has_pending_ = false;
      WriteNextLocked();
      ReadNextLocked();
    }
    EndOne();
  }
  void OnFinished(bool) { EndOne(); }
  // The client cancelled or is gone, or the call ended.
  void OnDone(bool) ABSL_LOCKS_EXCLUDED(mu_) {
    if (context_.IsCancelled()) {
      absl::MutexLock lock(&mu_);
      has_pending_ = false;
      if (!std::exchange(ending_, true)) final_status_ = grpc::Status::CANCELLED;
      WriteNextLocked();
    }
    EndOne();
  }

  void ReadNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (ending_ || reading_ || (writing_ && reading_mode_ == Reading::kAfterAnswers)) return;
    reading_ = true;
    ++open_;
    rpc_.Read(&incoming_, read_.tag());
  }
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_called_) return;
    if (std::exchange(has_pending_, false)) {
      writing_ = true;
      std::swap(outgoing_, pending_);
      pending_.Clear();
      ++open_;
      rpc_.Write(outgoing_, written_.tag());
    } else if (ending_) {
      finished_called_ = true;
      ++open_;
      rpc_.Finish(final_status_, finished_.tag());
    }
  }
  // One event less is open; the last one ends the stream.
  void EndOne() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      if (--open_ > 0) return;
    }
    OnClosed();
    use_.End();
    self_.reset();  // May destroy this.
  }

  const Reading reading_mode_;
  grpc::ServerContext context_;
  Rpc rpc_;
  MemberEvent<ServerStream> requested_{*this, &ServerStream::OnRequested}, read_{*this, &ServerStream::OnRead},
      written_{*this, &ServerStream::OnWritten}, finished_{*this, &ServerStream::OnFinished},
      done_{*this, &ServerStream::OnDone};
  std::shared_ptr<ServerStream> self_;  // The loop's thread only.
  CompletionLoop* loop_ = nullptr;      // Of `use_`.
  CompletionLoop::Use use_;             // As self_.
  In incoming_;                         // The loop's thread only.
  absl::Mutex mu_;
  int open_ ABSL_GUARDED_BY(mu_) = 0;  // Events that gRPC will still report.
  Out outgoing_ ABSL_GUARDED_BY(mu_), pending_ ABSL_GUARDED_BY(mu_);
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
  bool reading_ ABSL_GUARDED_BY(mu_) = false, writing_ ABSL_GUARDED_BY(mu_) = false,
                has_pending_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;  // No more messages are taken.
  bool finished_called_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace tandem
