#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/cpu/thread_pool.h"
#include "engine/cuda/staging_ring.h"
#include "model/tensor.h"

namespace tandem {

// Brings weights from the checkpoint to the device, as bf16 or as they are there: threads read and convert one piece
// while others are copied.
//
// Thread-safety: not thread-safe. Ownership: owns threads and staging memory; the stream outlives it.
class WeightUpload {
 public:
  // `expected_bytes`: of all weights, for the progress that is logged.
  static absl::StatusOr<std::unique_ptr<WeightUpload>> Create(int64_t expected_bytes, cudaStream_t stream);

  // Enqueues the copy of all of `tensor` as bf16, row by row, to `to` [rows][columns].
  void Upload(const TensorView& tensor, __nv_bfloat16* to);
  // As they are.
  void UploadBytes(absl::Span<const uint8_t> bytes, uint8_t* to);
  // Rows as `write_row` makes them, in several threads.
  void UploadRows(int64_t rows, int64_t row_bytes, absl::FunctionRef<void(int64_t row, uint8_t* out)> write_row,
                  uint8_t* to);

 private:
  WeightUpload(int64_t expected_bytes, cudaStream_t stream);
  void LogProgress();
  const int64_t expected_bytes_;
  const cudaStream_t stream_;
  ThreadPool threads_;
  std::unique_ptr<StagingRing> ring_;
  int64_t uploaded_bytes_ = 0;
  absl::Time begun_ = absl::InfinitePast(), told_;
};

}  // namespace tandem
