#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/tls/tls_stream.h"
#include "router/http/http_message.h"

namespace tandem {

// An HTTP/1.1 server: keep-alive, pipelining, chunked bodies, streams of server-sent events, and a limit to everything
// that a client can make it hold.
//
// Thread-safety: thread-safe; all handling is on one thread of its own.
// Ownership: owns the thread and the connections; borrows the handler, which outlives it.
class HttpServer {
 public:
  struct Options {
    std::string address = "127.0.0.1:0";      // host:port; port 0 draws one.
    std::shared_ptr<const TlsContext> tls;    // Null: in the clear.
    int max_connections = 16'384;             // One more is answered 503 and closed.
    size_t max_header_bytes = 32 << 10;       // 431.
    size_t max_body_bytes = 32 << 20;         // 413.
    size_t max_unfinished_bytes = 512 << 20;  // Of all bodies that are not whole yet: one more byte is answered 503.
    size_t max_pipelined_bytes = 1 << 20;     // Requests behind the one that is answered; the rest waits in the kernel.
    size_t max_unsent_bytes = 1 << 20;        // Of a stream whose client does not read: it is dropped.
    absl::Duration request_timeout = absl::Seconds(30);  // From a request's first byte to its last: 408.
    absl::Duration idle_timeout = absl::Seconds(120);    // Between requests: closed.
    absl::Duration write_timeout = absl::Seconds(30);    // With nothing taken by the client: dropped.
    absl::Duration ping_interval = absl::Seconds(15);    // Of silence in a stream, then a comment.
  };
  // Listens, and handles nothing before Start. INVALID_ARGUMENT for an address that is none, UNAVAILABLE where it is
  // taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const Options& options, HttpHandler& handler);
  // As Stop without grace.
  virtual ~HttpServer() = default;

  // Starts the thread, once.
  virtual void Start() = 0;
  // host:port, with the port in use.
  virtual const std::string& address() const = 0;
  // Runs `work` on the server's thread. After Stop it is dropped.
  virtual void Post(absl::AnyInvocable<void()> work) = 0;
  // Takes no new connection, waits up to `grace` for answers that are under way, closes the rest and joins. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace tandem
