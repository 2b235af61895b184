#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/async_stream.h>

#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/authorization.h"
#include "common/rpc/completion_loop.h"

namespace tandem {

// One call of a bidirectional method from the client's side, on a completion loop. Messages wait until the stream is
// connected; those that wait behind a write in flight become one.
//
// Thread-safety: Start once; Send, SendLast and Cancel from any thread after it; the hooks come on the loop's thread,
// one at a time, under no lock.
// Ownership: made by std::make_shared; keeps itself alive from Start until OnClosed has returned. The loop must be
// handled until then.
template <typename Out, typename In>
class ClientStream : public std::enable_shared_from_this<ClientStream<Out, In>> {
 public:
  using Rpc = std::unique_ptr<grpc::ClientAsyncReaderWriter<Out, In>>;
  virtual ~ClientStream() = default;

  // Dials. `prepare`: the stub's generated PrepareAsync method.
  void Start(CompletionLoop& loop, absl::FunctionRef<Rpc(grpc::ClientContext*, grpc::CompletionQueue*)> prepare)
      ABSL_LOCKS_EXCLUDED(mu_) {
    self_ = this->shared_from_this();
    use_ = CompletionLoop::Use(loop);
    if (!loop.trust().secret.empty()) context_.AddMetadata(kPeerSecretKey, loop.trust().secret);
    absl::MutexLock lock(&mu_);
    rpc_ = prepare(&context_, loop.queue());
    ++open_;
    rpc_->StartCall(started_.tag());
  }
  // Adds to the message that waits to be sent, which is empty or was filled since the last write. Nothing after
  // SendLast or the call's end.
  void Send(absl::FunctionRef<void(Out&)> fill) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (last_ || closing_) return;
    fill(pending_);
    has_pending_ = true;
    WriteNextLocked();
  }
  // As Send, and says that there is no more.
  void SendLast(absl::FunctionRef<void(Out&)> fill) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (last_ || closing_) return;
    fill(pending_);
    has_pending_ = true;
    last_ = true;
    WriteNextLocked();
  }
  // Brings about the end, which is told as any other.
  void Cancel() { context_.TryCancel(); }

 protected:
  virtual void OnMessage(In& message) = 0;
  // What was sent is written.
  virtual void OnAllWritten() {}
  // No message comes any more: the stream was not made, broke, or the peer sent what cannot be read, and may not know
  // that it is over.
  virtual void OnReadsEnded() {}
  // The call is over; nothing follows.
  virtual void OnClosed(const grpc::Status& status) = 0;

 private:
  void OnStarted(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    if (!ok) OnReadsEnded();
    {
      absl::MutexLock lock(&mu_);
      if (ok) {
        connected_ = true;
        ++open_;
        rpc_->Read(&incoming_, read_.tag());
        WriteNextLocked();
      } else {
        CloseLocked();
      }
    }
    EndOne();
  }
  void OnRead(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    if (ok) {
      OnMessage(incoming_);
    } else {
      OnReadsEnded();
    }
    incoming_.Clear();
    {
      absl::MutexLock lock(&mu_);
      if (ok) {
        ++open_;
        rpc_->Read(&incoming_, read_.tag());
      } else {
        CloseLocked();
      }
    }
    EndOne();
  }
  void OnWritten(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    bool all_written;
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
      if (ok) WriteNextLocked();
      all_written = ok && !writing_;
    }
    if (all_written) OnAllWritten();
    EndOne();  // After a failed write a read fails, too.
  }
  void OnFinished(bool) { EndOne(); }

  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!connected_ || closing_ || writing_ || !has_pending_) return;
    writing_ = true;
    has_pending_ = false;
    std::swap(outgoing_, pending_);
    pending_.Clear();
    ++open_;
    if (last_) {
      rpc_->WriteLast(outgoing_, grpc::WriteOptions(), written_.tag());
    } else {
      rpc_->Write(outgoing_, written_.tag());
    }
  }
  // Asks gRPC for the call's end.
  void CloseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    closing_ = true;
    ++open_;
    rpc_->Finish(&status_, finished_.tag());
  }
  // One event less is open; the last one ends the stream.
  void EndOne() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      if (--open_ > 0) return;
    }
    OnClosed(status_);
    use_.End();
    self_.reset();  // May destroy this.
  }

  grpc::ClientContext context_;
  MemberEvent<ClientStream> started_{*this, &ClientStream::OnStarted}, read_{*this, &ClientStream::OnRead},
      written_{*this, &ClientStream::OnWritten}, finished_{*this, &ClientStream::OnFinished};
  std::shared_ptr<ClientStream> self_;  // The loop's thread only, after Start.
  CompletionLoop::Use use_;             // As self_.
  In incoming_;                         // The loop's thread only.
  grpc::Status status_;                 // Written by gRPC before its last event.
  absl::Mutex mu_;
  Rpc rpc_ ABSL_GUARDED_BY(mu_);
  int open_ ABSL_GUARDED_BY(mu_) = 0;  // Events that gRPC will still report.
  Out outgoing_ ABSL_GUARDED_BY(mu_), pending_ ABSL_GUARDED_BY(mu_);
  bool connected_ ABSL_GUARDED_BY(mu_) = false, writing_ ABSL_GUARDED_BY(mu_) = false,
                  has_pending_ ABSL_GUARDED_BY(mu_) = false;
  bool last_ ABSL_GUARDED_BY(mu_) = false;     // No more messages are taken.
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called.
};

}  // namespace tandem
