#include "common/topology.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tandem::Topology::Parse(std::string(reinterpret_cast<const char*>(data), size), "t.yaml").status().IgnoreError();
  return 0;
}
