#include "router/http/openai_service.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "router/http/cluster_json.h"
#include "router/http/json_string.h"
#include "router/http/openai_error.h"
#include "router/http/page.h"

namespace tandem {
namespace {

constexpr absl::string_view kModelsPath = "/v1/models";

HttpResponse Answer(const absl::StatusOr<std::string>& body) {
  if (!body.ok()) return OpenAiError(body.status());
  return {.body = *body};
}

// Clients write the slash in "org/model" as %2F.
std::string PercentDecoded(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    int byte;
    if (text[i] == '%' && i + 2 < text.size() && absl::SimpleHexAtoi(text.substr(i + 1, 2), &byte)) {
      decoded.push_back(static_cast<char>(byte));
      i += 2;
    } else {
      decoded.push_back(text[i]);
    }
  }
  return decoded;
}

constexpr absl::string_view kClusterPath = "/cluster";

// Probes and Prometheus have none, and the page asks for it.
bool NeedsKey(absl::string_view path) {
  return absl::StartsWith(path, "/v1/") || path == "/tokenize" || path == "/detokenize" || path == kClusterPath;
}

}  // namespace

OpenAiService::OpenAiService(OpenAiShared shared, const MetricsServer& metrics)
    : shared_(std::move(shared)), metrics_(metrics), created_(absl::ToUnixSeconds(absl::Now())) {}

void OpenAiService::Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  absl::StatusOr<Tenant> tenant = kAnyone;
  if (NeedsKey(request.path)) {
    tenant = shared_.api_keys.Check(request.headers.Get("Authorization"));
    if (!tenant.ok()) {
      shared_.core.CountRefused("", kAnyone, tenant.status());
      HttpResponse refusal = OpenAiError(tenant.status());
      refusal.headers.emplace_back("WWW-Authenticate", "Bearer");
      reply->Send(std::move(refusal));
      return;
    }
  }
  if (is_get ? HandleGet(request, reply) : request.method == "POST" && HandlePost(request, *tenant, reply)) return;
  // Is it the path that is wrong, or the method?
  static constexpr absl::string_view kGets[] = {"/",      kClusterPath, "/health",  "/ping",
                                                "/ready", "/version",   "/metrics", kModelsPath};
  static constexpr absl::string_view kPosts[] = {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"};
  absl::string_view allow;
  for (absl::string_view path : kGets) allow = request.path == path ? "GET, HEAD" : allow;
  for (absl::string_view path : kPosts) allow = request.path == path ? "POST" : allow;
  if (allow.empty()) {
    reply->Send({.status = 404,
                 .body = OpenAiErrorBody(
                     404, absl::StrCat("there is no ", request.path, "; docs/http_api.md lists the paths"))});
    return;
  }
  reply->Send({.status = 405,
               .body = OpenAiErrorBody(405, absl::StrCat(request.path, " takes ", allow, ", not ", request.method)),
               .headers = {{"Allow", std::string(allow)}}});
}

std::string OpenAiService::ErrorBody(int status, absl::string_view message) { return OpenAiErrorBody(status, message); }

bool OpenAiService::HandleGet(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const std::string& path = request.path;
  if (path == "/") {
    reply->Send({.body = std::string(PageHtml()),
                 .content_type = "text/html; charset=utf-8",
                 .headers = {{"Content-Security-Policy",
                              "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                              "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}}});
  } else if (path == kClusterPath) {
    AnswerCluster(reply);
  } else if (path == "/health" || path == "/ping") {
    reply->Send({.content_type = "text/plain"});
  } else if (path == "/ready") {
    AnswerReady(reply);
  } else if (path == "/version") {
    reply->Send({.body = "{\"version\":\"" TANDEM_VERSION "\"}"});
  } else if (path == "/metrics") {
    reply->Send({.body = metrics_.Text(), .content_type = "text/plain; version=0.0.4; charset=utf-8"});
  } else if (path == kModelsPath) {
    reply->Send({.body = absl::StrCat("{\"object\":\"list\",\"data\":[", ModelCard(), "]}")});
  } else if (absl::StartsWith(path, absl::StrCat(kModelsPath, "/"))) {
    const absl::Status status = shared_.builder.CheckModel(PercentDecoded(path.substr(kModelsPath.size() + 1)));
    reply->Send(status.ok() ? HttpResponse{.body = ModelCard()} : OpenAiError(status));
  } else {
    return false;
  }
  return true;
}

bool OpenAiService::HandlePost(HttpRequest& request, Tenant tenant, const std::shared_ptr<HttpReply>& reply) {
  if (request.path == "/v1/chat/completions") {
    StartOpenAiCall(shared_, OpenAiEndpoint::kChatCompletions, tenant, std::move(request), reply);
  } else if (request.path == "/v1/completions") {
    StartOpenAiCall(shared_, OpenAiEndpoint::kCompletions, tenant, std::move(request), reply);
  } else if (request.path == "/tokenize") {
    AnswerText(std::move(request.body), reply, &OpenAiService::Tokenize);
  } else if (request.path == "/detokenize") {
    AnswerText(std::move(request.body), reply, &OpenAiService::Detokenize);
  } else {
    return false;
  }
  return true;
}

void OpenAiService::AnswerReady(std::shared_ptr<HttpReply> reply) {
  shared_.core.ReadState([this, reply = std::move(reply)](const ClusterView&, int64_t, bool ready) {
    shared_.server->Post([this, reply, ready] {
      if (shared_.gate.closed()) {
        reply->Send(OpenAiError(absl::UnavailableError("the router is shutting down")));
      } else if (ready) {
        reply->Send({.content_type = "text/plain"});
      } else {
        reply->Send(OpenAiError(absl::UnavailableError("the workers that requests need are not all here yet")));
      }
    });
  });
}

void OpenAiService::AnswerCluster(std::shared_ptr<HttpReply> reply) {
  shared_.core.ReadState([this, reply = std::move(reply)](const ClusterView& view, int64_t active, bool ready) {
    shared_.server->Post([reply, body = ClusterJson(view, shared_.served_name, active, ready)]() mutable {
      reply->Send({.body = std::move(body)});
    });
  });
}

void OpenAiService::AnswerText(std::string body, std::shared_ptr<HttpReply> reply,
                               absl::StatusOr<std::string> (OpenAiService::*read)(absl::string_view) const) {
  if (body.size() <= LongTexts::kLongBytes) {
    reply->Send(Answer((this->*read)(body)));
    return;
  }
  const size_t bytes = body.size();
  auto work = [this, body = std::move(body), reply, read](const absl::Status& go) {
    HttpResponse answer = go.ok() ? Answer((this->*read)(body)) : OpenAiError(go);
    shared_.server->Post([reply, answer = std::move(answer)]() mutable { reply->Send(std::move(answer)); });
  };
  const absl::Status status = shared_.long_texts.Run(bytes, std::move(work));
  if (!status.ok()) reply->Send(OpenAiError(status));
}

absl::StatusOr<std::string> OpenAiService::Tokenize(absl::string_view body) const {
  ASSIGN_OR_RETURN(const RawRequest raw, ParseTokenizeRequest(body));
  RETURN_IF_ERROR(shared_.builder.CheckModel(raw.model));
  ASSIGN_OR_RETURN(const TokenizedPrompt prompt, shared_.builder.Tokenize(raw));
  const std::vector<TokenId>& tokens = prompt.tokens;
  return absl::StrCat("{\"count\":", tokens.size(), ",\"max_model_len\":", shared_.core.max_context_tokens(),
                      ",\"tokens\":[", absl::StrJoin(tokens, ","), "]}");
}

absl::StatusOr<std::string> OpenAiService::Detokenize(absl::string_view body) const {
  ASSIGN_OR_RETURN(DetokenizeRequest request, ParseDetokenizeRequest(body));
  RETURN_IF_ERROR(shared_.builder.CheckModel(request.model));
  for (TokenId token : request.tokens) {
    if (token >= shared_.tokenizer.vocabulary_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens: ", token, " is not in the vocabulary of ", shared_.tokenizer.vocabulary_size()));
    }
  }
  return absl::StrCat("{\"prompt\":", JsonString(shared_.tokenizer.Decode(request.tokens, /*with_special=*/true)), "}");
}

std::string OpenAiService::ModelCard() const {
  const std::string name = JsonString(shared_.served_name);
  return absl::StrCat("{\"id\":", name, ",\"object\":\"model\",\"created\":", created_,
                      ",\"owned_by\":\"tandem\",\"root\":", name,
                      ",\"parent\":null,\"max_model_len\":", shared_.core.max_context_tokens(), ",\"permission\":[]}");
}

}  // namespace tandem
