#pragma once

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/completion_loop.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/server_stream.h"
#include "common/worker_messages.h"
#include "tandem/v1/worker.pb.h"

namespace tandem {

// One router's stream at a worker.
using SessionId = int64_t;

// What a worker does with its routers' commands. Called on the loop's thread; must not block.
class SessionHandler {
 public:
  virtual ~SessionHandler() = default;
  virtual void OnCommands(SessionId session, CommandFrame frame) = 0;
  virtual void OnSessionClosed(SessionId session) = 0;
};

// The worker's end of all router streams: frames in, frames out, one write in flight per stream.
//
// Thread-safety: thread-safe. Under mu_ a frame is encoded and a stream's own lock is taken, and nothing else is called
// but gRPC's own non-blocking calls. Ownership: streams keep themselves alive until gRPC is done with them, which is
// before the loop ends. Borrows the handler.
class SessionServer {
 public:
  using RequestNext = ServerStream<v1::CommandFrame, v1::EventFrame>::RequestNext;
  explicit SessionServer(SessionHandler& handler) : handler_(handler) {}
  ~SessionServer() { Close(); }

  // Begins to take streams; `request_next`: the generated Request method of the worker's service.
  void Start(CompletionLoop& loop, RequestNext request_next);
  // Sends events; dropped when the stream is gone.
  void Send(SessionId session, EventFrame frame) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes the starts out of a draining worker's `frame` and answers them WORKER_DRAINING.
  void RefuseStarts(SessionId session, CommandFrame& frame) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends all streams; new ones are refused.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Session;
  void AwaitSession();

  SessionHandler& handler_;
  CompletionLoop* loop_ = nullptr;
  RequestNext request_next_;
  absl::Mutex mu_;
  absl::flat_hash_map<SessionId, Session*> sessions_ ABSL_GUARDED_BY(mu_);
  SessionId next_id_ ABSL_GUARDED_BY(mu_) = 1;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

// A generated service whose only method is a worker's Session.
//
// Thread-safety: Start once, when the server runs.
// Ownership: borrows a session server, which outlives it.
class SessionService {
 public:
  virtual ~SessionService() = default;
  virtual HostedService hosted() = 0;
  // Begins to take streams, when the server runs.
  virtual void Start(CompletionLoop& loop) = 0;
};

}  // namespace tandem
