#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto chat = tandem::ChatTemplate::Create({reinterpret_cast<const char*>(data), size}, "<s>", "</s>");
  if (chat.ok())
    (*chat)->Render({.messages = {{"system", "s"}, {"user", "Hello {{ x }}"}}}, true).status().IgnoreError();
  return 0;
}
