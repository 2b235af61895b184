#include <cstdlib>
#include <memory>

#include "model/chat_template.h"
#include "model/checkpoint.h"
#include "router/generate_codec.h"
#include "router/request_builder.h"

namespace {

const tandem::Tokenizer& AnyTokenizer() {
  static const tandem::Tokenizer* const tokenizer = [] {
    auto checkpoint = tandem::Checkpoint::Open(TANDEM_SOURCE_DIR "/tests/golden/tiny/llama3_f32");
    if (!checkpoint.ok()) abort();
    return (*checkpoint)->LoadTokenizer()->release();
  }();
  return *tokenizer;
}

}  // namespace

// What a client may send over gRPC: a message that Protobuf takes, with any contents.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto chat_template = tandem::ChatTemplate::Create(
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", /*bos=*/"", /*eos=*/"");
  if (!chat_template.ok()) abort();
  static const tandem::RequestBuilder builder("m", AnyTokenizer(), chat_template->get(), {});
  tandem::v1::GenerateRequest proto;
  if (!proto.ParseFromArray(data, static_cast<int>(size))) return 0;
  builder.Build(tandem::DecodeRequest(proto)).status().IgnoreError();
  return 0;
}
