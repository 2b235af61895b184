#pragma once

#include <atomic>
#include <cstdint>
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
// When the server's thread lags behind by many turns, news wait here, and what is new of one sample is put together:
// what is on its way is bounded by the number of samples, not by their tokens.
//
// Thread-safety: sinks and EndTurn on the owner thread; Attach before requests.
// Ownership: owns what waits for the turn's end; borrows the server, which outlives the core's last turn.
class TurnRelay {
 public:
  void Attach(HttpServer& server) { server_ = &server; }
  // The sink of a request, which keeps the listener. The relay outlives it.
  std::shared_ptr<ResponseSink> NewSink(std::shared_ptr<RequestListener> listener, int request);
  // Sends what the turn brought, and what waits from turns before.
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
  uint64_t turns_sent_ = 0;  // Tells what is in turn_ from what was.
  bool holds_back_ = false;
  std::atomic<int> turns_on_their_way_ = 0;
};

}  // namespace tandem
