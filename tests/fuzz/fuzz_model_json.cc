#include "model/model_config.h"
#include "model/tokenizer.h"

// config.json and tokenizer.json of a hostile model folder.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  tandem::ModelConfig::FromJson(text, "").status().IgnoreError();
  auto spec = tandem::TokenizerSpec::FromJson(text);
  if (!spec.ok()) return 0;
  auto tokenizer = tandem::Tokenizer::Create(*std::move(spec));
  if (tokenizer.ok()) (*tokenizer)->Encode(text).status().IgnoreError();
  return 0;
}
