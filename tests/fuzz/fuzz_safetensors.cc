#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tandem::SafetensorsFile::Parse({data, size}).status().IgnoreError();
  return 0;
}
