#include "engine/cuda/weight_upload.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {
namespace {

constexpr int64_t kPieceBytes = int64_t{32} << 20;
constexpr int64_t kTaskBytes = int64_t{1} << 20;
constexpr int kMaxThreads = 16;

int NumThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads); }

}  // namespace

WeightUpload::WeightUpload(int64_t expected_bytes, cudaStream_t stream)
    : expected_bytes_(expected_bytes), stream_(stream), threads_(NumThreads()) {}

absl::StatusOr<std::unique_ptr<WeightUpload>> WeightUpload::Create(int64_t expected_bytes, cudaStream_t stream) {
  std::unique_ptr<WeightUpload> upload(new WeightUpload(expected_bytes, stream));
  ASSIGN_OR_RETURN(upload->ring_, StagingRing::Create(kPieceBytes, stream));
  return upload;
}

void WeightUpload::LogProgress() {
  const absl::Time now = Clock::Real().Now();
  if (begun_ == absl::InfinitePast()) begun_ = told_ = now;
  const bool is_all = uploaded_bytes_ >= expected_bytes_;
  if (!is_all && now - told_ < absl::Seconds(1)) return;
  told_ = now;
  const double seconds = std::max(1e-3, absl::ToDoubleSeconds(now - begun_));
  const double gigabytes = static_cast<double>(uploaded_bytes_) / 1e9;
  LogInfo("weights are brought to the GPU", {{"percent", 100 * uploaded_bytes_ / std::max<int64_t>(1, expected_bytes_)},
                                             {"GB", absl::StrFormat("%.2f", gigabytes)},
                                             {"GB_per_second", absl::StrFormat("%.2f", gigabytes / seconds)}});
}

void WeightUpload::UploadBytes(absl::Span<const uint8_t> bytes, uint8_t* to) {
  const auto size = static_cast<int64_t>(bytes.size());
  for (int64_t first = 0; first < size; first += kPieceBytes) {
    const int64_t count = std::min(kPieceBytes, size - first);
    uint8_t* staging = ring_->Acquire();
    threads_.ParallelFor((count + kTaskBytes - 1) / kTaskBytes, [&](int64_t task) {
      const int64_t begin = task * kTaskBytes, end = std::min(count, begin + kTaskBytes);
      std::memcpy(staging + begin, bytes.data() + first + begin, end - begin);
    });
    CheckCuda(cudaMemcpyAsync(to + first, staging, count, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    ring_->Release();
    uploaded_bytes_ += count;
    LogProgress();
  }
}

void WeightUpload::UploadRows(int64_t rows, int64_t row_bytes,
                              absl::FunctionRef<void(int64_t row, uint8_t* out)> write_row, uint8_t* to) {
  const int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / row_bytes);
  const int64_t task_rows = std::max<int64_t>(1, kTaskBytes / row_bytes);
  for (int64_t first = 0; first < rows; first += piece_rows) {
    const int64_t count = std::min(piece_rows, rows - first);
    uint8_t* staging = ring_->Acquire();
    threads_.ParallelFor((count + task_rows - 1) / task_rows, [&](int64_t task) {
      const int64_t begin = task * task_rows, end = std::min(count, begin + task_rows);
      for (int64_t row = begin; row < end; ++row) write_row(first + row, staging + row * row_bytes);
    });
    CheckCuda(cudaMemcpyAsync(to + first * row_bytes, staging, count * row_bytes, cudaMemcpyHostToDevice, stream_),
              "cudaMemcpyAsync");
    ring_->Release();
    uploaded_bytes_ += count * row_bytes;
    LogProgress();
  }
}

void WeightUpload::Upload(const TensorView& tensor, __nv_bfloat16* to) {
  const int64_t columns = tensor.columns(), row_bytes = columns * 2;
  const auto write_row = [&](int64_t row, uint8_t* out) {
    if (tensor.dtype == DType::kBF16) {
      std::memcpy(out, tensor.data.data() + row * row_bytes, row_bytes);
      return;
    }
    thread_local std::vector<float> values;
    values.resize(columns);
    DequantizeRow(tensor, row, columns, values.data());
    for (int64_t i = 0; i < columns; ++i) reinterpret_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16_rn(values[i]);
  };
  UploadRows(tensor.rows(), row_bytes, write_row, reinterpret_cast<uint8_t*>(to));
}

}  // namespace tandem
