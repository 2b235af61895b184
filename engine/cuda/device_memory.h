#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace tandem {

// A stretch of memory that CUDA gave.
//
// Thread-safety: immutable but for what it holds. Ownership: owns the memory.
class DeviceMemory {
 public:
  enum class Kind {
    kDevice,  // Of the calling thread's device; zeros at first.
    kPinned,  // Of the host, for copies that nobody waits for.
  };
  DeviceMemory() = default;
  // RESOURCE_EXHAUSTED, with what was asked for and what is free.
  static absl::StatusOr<DeviceMemory> Allocate(Kind kind, size_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept : kind_(other.kind_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceMemory();

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Kind kind_ = Kind::kDevice;
  void* data_ = nullptr;
};

}  // namespace tandem
