#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace tandem {

// A whole file, mapped read-only, so that weights are paged in by use and shared between processes.
//
// Thread-safety: immutable after Open.
// Ownership: owns the mapping; views into it must not outlive it.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT (not a plain file, or empty), with the path.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size);
  const std::string path_;
  const uint8_t* const data_;
  const size_t size_;
};

}  // namespace tandem
