#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem {

// Makes a safetensors file for tests.
class SafetensorsWriter {
 public:
  // `dtype` as the format names it.
  void Add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
           const std::string& bytes) {
    entries_.push_back(absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", absl::StrJoin(shape, ","),
                                    "],\"data_offsets\":[", data_.size(), ",", data_.size() + bytes.size(), "]}"));
    data_ += bytes;
  }
  template <typename T>
  void Add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
           const std::vector<T>& values) {
    Add(name, dtype, shape, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
  }
  std::string Bytes() const {
    const std::string header = absl::StrCat("{", absl::StrJoin(entries_, ","), "}");
    const uint64_t size = header.size();
    return absl::StrCat(std::string(reinterpret_cast<const char*>(&size), sizeof(size)), header, data_);
  }
  void Write(const std::string& path) const { std::ofstream(path, std::ios::binary) << Bytes(); }

 private:
  std::vector<std::string> entries_;
  std::string data_;
};

}  // namespace tandem
