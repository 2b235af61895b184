#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/string_view.h"

namespace tandem {

// The header fields of a request. Names are compared without regard to case.
class HttpHeaders {
 public:
  virtual ~HttpHeaders() = default;
  // Empty where there is none.
  virtual absl::string_view Get(absl::string_view name) const = 0;
};

// A whole request, as it came.
struct HttpRequest {
  std::string method;
  std::string path;  // Without the query.
  std::string body;
  const HttpHeaders& headers;  // For as long as Handle runs.
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
};

// Where the answer to one request goes: one whole response, or a stream of server-sent events. Calls after the end,
// or after the client left, do nothing.
//
// Thread-safety: the server's thread only.
// Ownership: shared by the server and whoever answers. Must not outlive the server.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  // The whole answer; only before the stream has started.
  virtual void Send(HttpResponse response) = 0;
  // The answer will be a stream. It starts with the first event, or with a comment where none came for a while, since
  // proxies and clients give up on silence; until then an error can still be sent as a response.
  virtual void ExpectStream() = 0;
  virtual bool stream_started() const = 0;
  // Appends whole events ("data: ...\n\n"); starts the stream. What is written in one turn of the thread leaves in one
  // piece.
  virtual void Write(absl::string_view events) = 0;
  virtual void EndStream() = 0;
  // Called once, when the client leaves or reads too slowly before the end.
  virtual void OnGone(absl::AnyInvocable<void()> callback) = 0;
  // Called once, when the answer has left for the client, or the client left.
  virtual void OnOver(absl::AnyInvocable<void()> callback) = 0;
};

// What answers requests.
//
// Thread-safety: called on the server's thread; must not block.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // The reply may be kept and answered later.
  virtual void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) = 0;
  // The body of a refusal by the server itself (bad syntax, too large, too slow, too many).
  virtual std::string ErrorBody(int status, absl::string_view message) = 0;
};

}  // namespace tandem
