#include "model/gguf.h"
#include "model/model_config.h"
#include "model/tokenizer.h"

// A hostile GGUF file: parsed, then asked for everything that opening a model asks for.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto gguf = tandem::GgufFile::Parse({data, size});
  if (!gguf.ok()) return 0;
  tandem::ModelConfig::FromGguf(**gguf).status().IgnoreError();
  auto spec = tandem::TokenizerSpec::FromGguf(**gguf);
  if (spec.ok()) tandem::Tokenizer::Create(*std::move(spec)).status().IgnoreError();
  std::vector<float> row;
  for (const tandem::TensorView& tensor : (*gguf)->tensors()) {
    switch (tensor.dtype) {
      case tandem::DType::kU8:
      case tandem::DType::kI8:
      case tandem::DType::kI32:
      case tandem::DType::kI64:
        continue;
      default:
        row.resize(tensor.columns());
        DequantizeRow(tensor, tensor.rows() - 1, tensor.columns(), row.data());
    }
  }
  return 0;
}
