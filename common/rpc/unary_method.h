#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/async_unary_call.h>

#include <functional>
#include <memory>
#include <utility>

#include "common/rpc/completion_loop.h"

namespace tandem {

// Serves every call of one unary method on the thread of a completion loop:
//
//   ServeUnary<v1::CancelRequest, v1::CancelResponse>(
//       loop, [&service](auto... arguments) { service.RequestCancel(arguments...); },
//       [](const v1::CancelRequest& request, v1::CancelResponse* response, UnaryDone done) { ... done(status); });
//
// `request_next` is called by ServeUnary and then, as `handle`, on the loop's thread, until the server shuts down.
// A `done` that is destroyed and was never called answers UNAVAILABLE: who should have called it is gone.
using UnaryDone = std::function<void(const grpc::Status&)>;

// Whether the caller may call; on the loop's thread. An empty one: everybody may.
using CallCheck = std::function<grpc::Status(const grpc::ServerContext&)>;

// One call, from waiting for a client to the answer.
//
// Thread-safety: the loop's thread only; `done` must be called there.
// Ownership: keeps itself alive until gRPC reported its last event.
template <typename Request, typename Response>
class UnaryCall {
 public:
  using RequestNext = std::function<void(grpc::ServerContext*, Request*, grpc::ServerAsyncResponseWriter<Response>*,
                                         grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*)>;
  // Calls `done` once, then or later; until then it may use the request and fill the response.
  using Handle = std::function<void(const Request&, Response*, UnaryDone)>;
  struct Method {
    CompletionLoop& loop;
    RequestNext request_next;
    Handle handle;
    CallCheck check;
  };

  static void Listen(std::shared_ptr<const Method> method) {
    auto call = std::make_shared<UnaryCall>(std::move(method));
    call->self_ = call;
    grpc::ServerCompletionQueue* queue = call->method_->loop.queue();
    call->method_->request_next(&call->context_, &call->request_, &call->writer_, queue, queue, call->requested_.tag());
  }
  explicit UnaryCall(std::shared_ptr<const Method> method)
      : method_(std::move(method)), writer_(&context_), use_(method_->loop) {}

 private:
  // Shared by the copies of one `done`.
  struct Answer {
    explicit Answer(std::shared_ptr<UnaryCall> owner) : call(std::move(owner)) {}
    ~Answer() { Give({grpc::StatusCode::UNAVAILABLE, "the server is shutting down"}); }
    void Give(const grpc::Status& status) {
      if (std::exchange(given, true)) return;
      call->writer_.Finish(call->response_, status, call->finished_.tag());
    }
    const std::shared_ptr<UnaryCall> call;
    bool given = false;
  };
  void OnRequested(bool ok) {
    if (!ok) {  // The server shuts down.
      self_.reset();
      return;
    }
    Listen(method_);
    auto answer = std::make_shared<Answer>(self_);
    if (const grpc::Status status = method_->check ? method_->check(context_) : grpc::Status::OK; !status.ok()) {
      answer->Give(status);
      return;
    }
    method_->handle(request_, &response_, [answer](const grpc::Status& status) { answer->Give(status); });
  }
  void OnFinished(bool) { self_.reset(); }

  const std::shared_ptr<const Method> method_;
  grpc::ServerContext context_;
  Request request_;
  Response response_;
  grpc::ServerAsyncResponseWriter<Response> writer_;
  MemberEvent<UnaryCall> requested_{*this, &UnaryCall::OnRequested}, finished_{*this, &UnaryCall::OnFinished};
  std::shared_ptr<UnaryCall> self_;
  const CompletionLoop::Use use_;
};

template <typename Request, typename Response>
void ServeUnary(CompletionLoop& loop, typename UnaryCall<Request, Response>::RequestNext request_next,
                typename UnaryCall<Request, Response>::Handle handle, CallCheck check = nullptr) {
  using Call = UnaryCall<Request, Response>;
  Call::Listen(std::make_shared<const typename Call::Method>(
      typename Call::Method{loop, std::move(request_next), std::move(handle), std::move(check)}));
}

}  // namespace tandem
