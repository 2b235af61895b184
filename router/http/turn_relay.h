#pragma once

#include <memory>
#include <vector>

#include "router/http/http_server.h"
#include "router/request.h"

namespace tandem {

// Who is told how requests go on.
//
// Thread-safety: called on the HTTP server's thread.
class RequestListener {
 public:
  virtual ~RequestListener() = default;
  // `request` is the number that the listener gave its request.
  virtual void OnUpdate(int request, SampleUpdate update) = 0;
  // The last word on a request.
  virtual void OnFinish(int request, const absl::Status& status, const RequestUsage& usage) = 0;
};

// Carries what the core says of requests from its owner thread to the HTTP server's: all of a turn in one piece, so
// that a step's tokens cost one hop between the threads, and not one each.
//
// Thread-safety: sinks and EndTurn on the owner thread; Attach before requests.
// Ownership: owns what waits for the turn's end; borrows the server, which outlives the core's last turn.
class TurnRelay {
 public:
  void Attach(HttpServer& server) { server_ = &server; }
  // The sink of a request, which keeps the listener. The relay outlives it.
  std::shared_ptr<ResponseSink> NewSink(std::shared_ptr<RequestListener> listener, int request);
  // Sends what the turn brought.
  void EndTurn();

 private:
  class Sink;
  struct News {
    // Co-owner: the sink.
    std::shared_ptr<RequestListener> listener;
    int request;
    SampleUpdate update;
    bool is_end = false;
    absl::Status status;
    RequestUsage usage;
  };
  HttpServer* server_ = nullptr;
  std::vector<News> turn_;
};

}  // namespace tandem
