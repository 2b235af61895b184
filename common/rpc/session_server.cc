#include "common/rpc/session_server.h"

#include <utility>

#include "common/error_reason.h"
#include "common/rpc/frame_codec.h"

namespace tandem {

// Locks: mu_ of the session guards its write queue; it is taken inside the server's mu_, never the
// other way.
class SessionServer::Session final : public grpc::ServerBidiReactor<v1::CommandFrame, v1::EventFrame> {
 public:
  Session(SessionServer& server, SessionId id) : server_(server), id_(id) {}

  void Begin() { StartRead(&incoming_); }

  void Send(const EventFrame& frame) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    // Frames that wait behind a write in flight become one.
    EncodeEvents(frame, &pending_);
    has_pending_ = true;
    WriteNextLocked();
  }

  void FinishWith(grpc::Status status) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (std::exchange(finished_, true)) return;
    Finish(std::move(status));
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      FinishWith(grpc::Status::OK);
      return;
    }
    server_.handler_.OnCommands(id_, DecodeCommands(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!finished_) WriteNextLocked();
  }

  void OnCancel() override { FinishWith(grpc::Status::CANCELLED); }

  void OnDone() override {
    server_.Remove(id_);
    delete this;
  }

 private:
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || !has_pending_) return;
    writing_ = true;
    has_pending_ = false;
    outgoing_.Swap(&pending_);
    pending_.Clear();
    StartWrite(&outgoing_);
  }

  SessionServer& server_;
  const SessionId id_;
  v1::CommandFrame incoming_;
  absl::Mutex mu_;
  v1::EventFrame outgoing_ ABSL_GUARDED_BY(mu_), pending_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false, has_pending_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

SessionServer::~SessionServer() { Close(); }

grpc::ServerBidiReactor<v1::CommandFrame, v1::EventFrame>* SessionServer::NewSession() {
  Session* session;
  {
    absl::MutexLock lock(&mu_);
    SessionId id = next_id_++;
    session = new Session(*this, id);
    if (!closed_) sessions_[id] = session;
    if (closed_) {
      session->FinishWith(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"));
      return session;
    }
  }
  session->Begin();
  return session;
}

void SessionServer::Send(SessionId id, EventFrame frame) {
  absl::MutexLock lock(&mu_);
  auto entry = sessions_.find(id);
  if (entry != sessions_.end()) entry->second->Send(frame);
}

void SessionServer::RefuseStarts(SessionId session, CommandFrame& frame) {
  EventFrame refusals;
  for (const StartLeg& start : frame.starts) {
    refusals.events.push_back(
        {.id = start.id,
         .error = MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerDraining, "the worker is draining")});
  }
  frame.starts.clear();
  if (!refusals.events.empty()) Send(session, std::move(refusals));
}

void SessionServer::Close() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
  for (auto& [id, session] : sessions_) {
    session->FinishWith(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"));
  }
}

void SessionServer::Remove(SessionId id) {
  {
    absl::MutexLock lock(&mu_);
    if (sessions_.erase(id) == 0) return;
  }
  handler_.OnSessionClosed(id);
}

}  // namespace tandem
