#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/gguf.h"

namespace tandem {

// Writes GGUF files piece by piece, wrong ones too. The numbers are those of the format: value type 4
// is uint32, 5 int32, 6 float32, 8 text, 9 list.
class GgufWriter {
 public:
  GgufWriter(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    bytes_ = "GGUF";
    Add(version).Add(tensors).Add(keys);
  }
  template <typename T>
  GgufWriter& Add(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufWriter& AddText(const std::string& text) {
    Add(uint64_t{text.size()});
    bytes_ += text;
    return *this;
  }
  GgufWriter& AddIntKey(const std::string& key, uint32_t value) { return AddText(key).Add(uint32_t{4}).Add(value); }
  GgufWriter& AddTextKey(const std::string& key, const std::string& value) {
    return AddText(key).Add(uint32_t{8}).AddText(value);
  }
  GgufWriter& AddTextsKey(const std::string& key, const std::vector<std::string>& values) {
    AddText(key).Add(uint32_t{9}).Add(uint32_t{8}).Add(uint64_t{values.size()});
    for (const std::string& value : values) AddText(value);
    return *this;
  }
  GgufWriter& AddIntsKey(const std::string& key, const std::vector<int32_t>& values) {
    AddText(key).Add(uint32_t{9}).Add(uint32_t{5}).Add(uint64_t{values.size()});
    for (int32_t value : values) Add(value);
    return *this;
  }
  GgufWriter& AddFloatsKey(const std::string& key, const std::vector<float>& values) {
    AddText(key).Add(uint32_t{9}).Add(uint32_t{6}).Add(uint64_t{values.size()});
    for (float value : values) Add(value);
    return *this;
  }
  GgufWriter& AddTensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    AddText(name).Add(static_cast<uint32_t>(dims.size()));
    for (uint64_t dim : dims) Add(dim);
    return Add(type).Add(offset);
  }
  GgufWriter& Pad(size_t data_bytes) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + data_bytes);
    return *this;
  }
  absl::StatusOr<std::unique_ptr<GgufFile>> Parse() const {
    return GgufFile::Parse({reinterpret_cast<const uint8_t*>(bytes_.data()), bytes_.size()});
  }
  std::string bytes_;
};

}  // namespace tandem
