#pragma once

#include <memory>
#include <string>

#include "common/metrics.h"
#include "router/http/http_message.h"
#include "router/http/openai_call.h"

namespace tandem {

// The HTTP edge: OpenAI's calls and what operators ask of a server; docs/http_api.md lists them.
//
// Thread-safety: as HttpHandler.
// Ownership: borrows what it is given.
class OpenAiService final : public HttpHandler {
 public:
  OpenAiService(OpenAiShared shared, const MetricsServer& metrics);
  // The server that calls this; before the first request.
  void Attach(HttpServer& server) { shared_.server = &server; }

  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) override;
  std::string ErrorBody(int status, absl::string_view message) override;

 private:
  // False where there is no such path.
  bool HandleGet(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  bool HandlePost(HttpRequest& request, Tenant tenant, const std::shared_ptr<HttpReply>& reply);
  void AnswerReady(std::shared_ptr<HttpReply> reply);
  void AnswerCluster(std::shared_ptr<HttpReply> reply);
  // Answers with what `read` makes of the body, on another thread where it is long.
  void AnswerText(std::string body, std::shared_ptr<HttpReply> reply,
                  absl::StatusOr<std::string> (OpenAiService::*read)(absl::string_view) const);
  absl::StatusOr<std::string> Tokenize(absl::string_view body) const;
  absl::StatusOr<std::string> Detokenize(absl::string_view body) const;
  std::string ModelCard() const;

  OpenAiShared shared_;
  const MetricsServer& metrics_;
  const int64_t created_;
};

}  // namespace tandem
