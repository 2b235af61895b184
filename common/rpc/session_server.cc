#include "common/rpc/session_server.h"

#include <utility>

#include "common/error_reason.h"
#include "common/rpc/frame_codec.h"

namespace tandem {
namespace {

grpc::Status ShuttingDown() { return {grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"}; }

}  // namespace

// Locks: its own is taken inside the server's mu_, never the other way.
class SessionServer::Session final : public ServerStream<v1::CommandFrame, v1::EventFrame> {
 public:
  explicit Session(SessionServer& server) : server_(server) {}

 private:
  void OnOpen() override ABSL_LOCKS_EXCLUDED(server_.mu_) {
    server_.AwaitSession();
    absl::MutexLock lock(&server_.mu_);
    id_ = server_.next_id_++;
    server_.sessions_[id_] = this;
    if (server_.closed_) Finish(ShuttingDown());
  }
  void OnMessage(v1::CommandFrame& frame) override { server_.handler_.OnCommands(id_, DecodeCommands(frame)); }
  void OnClosed() override ABSL_LOCKS_EXCLUDED(server_.mu_) {
    {
      absl::MutexLock lock(&server_.mu_);
      server_.sessions_.erase(id_);
    }
    server_.handler_.OnSessionClosed(id_);
  }

  SessionServer& server_;
  SessionId id_ = 0;
};

void SessionServer::Start(CompletionLoop& loop, RequestNext request_next) {
  loop_ = &loop;
  request_next_ = std::move(request_next);
  AwaitSession();
}

void SessionServer::AwaitSession() { std::make_shared<Session>(*this)->Await(*loop_, request_next_); }

void SessionServer::Send(SessionId id, EventFrame frame) {
  absl::MutexLock lock(&mu_);
  auto entry = sessions_.find(id);
  if (entry != sessions_.end()) entry->second->Send([&](v1::EventFrame& out) { EncodeEvents(frame, &out); });
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
  for (auto& [id, session] : sessions_) session->Finish(ShuttingDown());
}

}  // namespace tandem
