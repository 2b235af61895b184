#pragma once

#include <cstdint>
#include <cstring>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace tandem {

// Reads little-endian values from untrusted bytes; every read is checked against the end.
//
// Thread-safety: not thread-safe.
// Ownership: borrows the bytes.
class ByteReader {
 public:
  explicit ByteReader(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

  // OUT_OF_RANGE, naming the offset and `what`, when the bytes end first; nothing is consumed then.
  template <typename T>
  absl::StatusOr<T> Read(absl::string_view what) {
    if (remaining() < sizeof(T)) return EndedIn(what, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }
  absl::StatusOr<absl::string_view> ReadText(uint64_t size, absl::string_view what) {
    if (remaining() < size) return EndedIn(what, size);
    absl::string_view text(reinterpret_cast<const char*>(bytes_.data()) + offset_, size);
    offset_ += size;
    return text;
  }

 private:
  absl::Status EndedIn(absl::string_view what, uint64_t wanted) const {
    return absl::OutOfRangeError(
        absl::StrCat("at byte ", offset_, ": ", what, " needs ", wanted, " bytes, ", remaining(), " are left"));
  }
  absl::Span<const uint8_t> bytes_;
  size_t offset_ = 0;
};

}  // namespace tandem
