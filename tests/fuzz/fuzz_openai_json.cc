#include "router/http/chat_output.h"
#include "router/http/openai_error.h"
#include "router/http/openai_request.h"

namespace {

// An answer whose text a model chose, in two pieces.
void TakeApart(absl::string_view text, tandem::ToolFormat tools) {
  tandem::ChatOutput output({tools, /*reasons=*/true}, /*opens_reasoning=*/text.size() % 2 == 1);
  output.Append(text.substr(0, text.size() / 2));
  output.Append(text.substr(text.size() / 2));
  output.Finish();
}

}  // namespace

// A hostile body, for every call that takes one; and as the text of an answer.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  for (tandem::OpenAiEndpoint endpoint :
       {tandem::OpenAiEndpoint::kCompletions, tandem::OpenAiEndpoint::kChatCompletions}) {
    auto request = tandem::ParseOpenAiRequest(endpoint, body);
    if (!request.ok()) tandem::OpenAiError(request.status());
  }
  tandem::ParseTokenizeRequest(body).status().IgnoreError();
  tandem::ParseDetokenizeRequest(body).status().IgnoreError();
  for (tandem::ToolFormat tools :
       {tandem::ToolFormat::kHermes, tandem::ToolFormat::kLlama3, tandem::ToolFormat::kDeepSeek}) {
    TakeApart(body, tools);
  }
  return 0;
}
