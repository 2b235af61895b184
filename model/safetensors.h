#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/mapped_file.h"
#include "model/tensor.h"

namespace tandem {

// One safetensors file: a JSON header and the tensors' bytes, all checked when opened.
//
// Thread-safety: immutable after Open.
// Ownership: owns the mapping; tensors are views into it.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT names the file, the tensor and what is wrong: header size, JSON, type, shape,
  // offsets that leave the file, overlap or do not match the shape.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // The tensors in bytes that the caller keeps alive; for tests and fuzzing.
  static absl::StatusOr<std::vector<TensorView>> Parse(absl::Span<const uint8_t> bytes);

  const std::vector<TensorView>& tensors() const { return tensors_; }

 private:
  SafetensorsFile(std::unique_ptr<MappedFile> file, std::vector<TensorView> tensors);
  std::unique_ptr<MappedFile> file_;
  std::vector<TensorView> tensors_;
};

}  // namespace tandem
