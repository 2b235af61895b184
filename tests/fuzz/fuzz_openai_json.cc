#include "router/http/openai_error.h"
#include "router/http/openai_request.h"

// A hostile body, for every call that takes one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  for (tandem::OpenAiEndpoint endpoint :
       {tandem::OpenAiEndpoint::kCompletions, tandem::OpenAiEndpoint::kChatCompletions}) {
    auto request = tandem::ParseOpenAiRequest(endpoint, body);
    if (!request.ok()) tandem::OpenAiError(request.status());
  }
  tandem::ParseTokenizeRequest(body).status().IgnoreError();
  tandem::ParseDetokenizeRequest(body).status().IgnoreError();
  return 0;
}
