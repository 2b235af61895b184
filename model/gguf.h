#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/mapped_file.h"
#include "model/tensor.h"

namespace tandem {

// One metadata value. Integers of all widths become int64 (a uint64 over its range is refused).
using GgufValue = std::variant<int64_t, double, bool, absl::string_view, std::vector<int64_t>, std::vector<double>,
                               std::vector<absl::string_view>>;

// A GGUF file (versions 2 and 3, little-endian): metadata and tensors, all checked when opened.
//
// Thread-safety: immutable after Open.
// Ownership: owns the mapping; strings and tensors are views into it.
class GgufFile {
 public:
  // INVALID_ARGUMENT names the file, the byte and what is wrong; also for tensor types that Tandem
  // does not read.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // As Open, of bytes that the caller keeps alive; for tests and fuzzing.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(absl::Span<const uint8_t> bytes);

  bool HasKey(absl::string_view key) const { return metadata_.contains(key); }
  // NOT_FOUND when missing, INVALID_ARGUMENT when of another type; both name the key.
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  absl::StatusOr<absl::Span<const absl::string_view>> GetStrings(absl::string_view key) const;
  absl::StatusOr<absl::Span<const int64_t>> GetInts(absl::string_view key) const;
  absl::StatusOr<absl::Span<const double>> GetFloats(absl::string_view key) const;
  bool GetBool(absl::string_view key, bool default_value) const;

  const std::vector<TensorView>& tensors() const { return tensors_; }

 private:
  GgufFile() = default;
  absl::Status ParseBytes(absl::Span<const uint8_t> bytes);
  template <typename T>
  absl::StatusOr<const T*> Find(absl::string_view key, absl::string_view type) const;

  std::unique_ptr<MappedFile> file_;  // Null when parsed from bytes.
  absl::flat_hash_map<std::string, GgufValue> metadata_;
  std::vector<TensorView> tensors_;
};

}  // namespace tandem
