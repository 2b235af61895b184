#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"

namespace tandem {

// Back-to-back BF16 matrix products that fill a GPU, as a prefill does, by cuBLAS, which is found at run time
// (libcublas.so.13).
//
// Thread-safety: not thread-safe; a thread of its own keeps the GPU's queue filled.
// Ownership: owns thread, stream and matrices.
class GemmLoad {
 public:
  struct Shape {
    int m, n, k;
  };
  // UNAVAILABLE: no cuBLAS here.
  static absl::StatusOr<std::unique_ptr<GemmLoad>> Start(int device, const Shape& shape);
  virtual ~GemmLoad() = default;
  // Products that have ended so far.
  virtual int64_t finished() const = 0;
};

}  // namespace tandem
