#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/gate.h"
#include "router/api_keys.h"
#include "router/http/chat_output.h"
#include "router/http/http_message.h"
#include "router/http/openai_request.h"
#include "router/http/turn_relay.h"
#include "router/long_texts.h"
#include "router/request_builder.h"
#include "router/router_core.h"

namespace tandem {

// What all calls share; outlives them.
struct OpenAiShared {
  std::string served_name;
  int64_t max_samples = 0;  // Of one call: more can never be admitted.
  ChatFormat chat_format;   // Of the model's template.
  bool splits_chat_output = true;
  const ApiKeys& api_keys;
  const Tokenizer& tokenizer;
  const RequestBuilder& builder;
  RouterCore& core;
  LongTexts& long_texts;
  TurnRelay& relay;
  Gate& gate;
  const Clock& clock;
  HttpServer* server = nullptr;
};

// Answers a call to /v1/completions or /v1/chat/completions: reads the body, submits a request for each prompt, and
// writes what comes of them as events or as one body. The client's end ends the requests; an error of one ends the
// others. The header X-Request-Id names the request,
// X-Session-Id its session, and traceparent the trace that it belongs to.
void StartOpenAiCall(OpenAiShared& shared, OpenAiEndpoint endpoint, Tenant tenant, HttpRequest request,
                     std::shared_ptr<HttpReply> reply);

}  // namespace tandem
