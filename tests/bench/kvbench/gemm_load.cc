#include "tests/bench/kvbench/gemm_load.h"

#include <dlfcn.h>

#include <cstdint>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/current_device.h"

namespace tandem {
namespace {

// Of cublas_v2.h and library_types.h, which the build does without.
using Handle = void*;
constexpr int kNoTranspose = 0, kTranspose = 1, kBf16 = 14, kFloatCompute = 68, kDefaultAlgorithm = -1;
using CreateFunction = int (*)(Handle*);
using SetStreamFunction = int (*)(Handle, cudaStream_t);
using GemmFunction = int (*)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                             const void*, void*, int, int, int, int);

// So many products are in the queue: the GPU never waits for the host.
constexpr size_t kQueued = 6;

class CublasLoad final : public GemmLoad {
 public:
  CublasLoad(int device, const Shape& shape) : device_(device), shape_(shape) {}
  ~CublasLoad() override {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
    const CurrentDevice current(device_);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (void* matrix : matrices_) cudaFree(matrix);
  }

  absl::Status Begin() {
    void* library = dlopen("libcublas.so.13", RTLD_NOW);
    if (library == nullptr) return absl::UnavailableError(absl::StrCat("no cuBLAS: ", dlerror()));
    auto create = reinterpret_cast<CreateFunction>(dlsym(library, "cublasCreate_v2"));
    auto set_stream = reinterpret_cast<SetStreamFunction>(dlsym(library, "cublasSetStream_v2"));
    gemm_ = reinterpret_cast<GemmFunction>(dlsym(library, "cublasGemmEx"));
    if (create == nullptr || set_stream == nullptr || gemm_ == nullptr) return absl::UnavailableError("no cuBLAS");
    const CurrentDevice current(device_);
    RETURN_IF_ERROR(current.status());
    RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"));
    if (create(&handle_) != 0 || set_stream(handle_, stream_) != 0) return absl::InternalError("cublasCreate failed");
    const size_t sizes[] = {size_t{2} * shape_.m * shape_.k, size_t{2} * shape_.k * shape_.n,
                            size_t{2} * shape_.m * shape_.n};
    for (int i = 0; i < 3; ++i) {
      RETURN_IF_ERROR(CudaStatus(cudaMalloc(&matrices_[i], sizes[i]), "cudaMalloc"));
      // 0x3C3C is about 0.01: no zeros, no overflow.
      RETURN_IF_ERROR(CudaStatus(cudaMemset(matrices_[i], 0x3C, sizes[i]), "cudaMemset"));
    }
    RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize"));
    RETURN_IF_ERROR(Enqueue());
    RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "gemm"));
    thread_ = std::thread([this] { Main(); });
    return absl::OkStatus();
  }

  int64_t finished() const override { return finished_; }

 private:
  absl::Status Enqueue() {
    const float alpha = 1, beta = 0;
    const int status =
        gemm_(handle_, kTranspose, kNoTranspose, shape_.m, shape_.n, shape_.k, &alpha, matrices_[0], kBf16, shape_.k,
              matrices_[1], kBf16, shape_.k, &beta, matrices_[2], kBf16, shape_.m, kFloatCompute, kDefaultAlgorithm);
    return status == 0 ? absl::OkStatus() : absl::InternalError(absl::StrCat("cublasGemmEx: ", status));
  }

  void Main() {
    const CurrentDevice current(device_);
    std::deque<cudaEvent_t> queued;
    while (!stopping_) {
      while (queued.size() < kQueued && Enqueue().ok()) {
        cudaEvent_t ended = nullptr;
        cudaEventCreateWithFlags(&ended, cudaEventDisableTiming | cudaEventBlockingSync);
        cudaEventRecord(ended, stream_);
        queued.push_back(ended);
      }
      if (queued.empty()) return;
      cudaEventSynchronize(queued.front());
      cudaEventDestroy(queued.front());
      queued.pop_front();
      ++finished_;
    }
    for (cudaEvent_t event : queued) cudaEventDestroy(event);
  }

  const int device_;
  const Shape shape_;
  Handle handle_ = nullptr;
  GemmFunction gemm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  void* matrices_[3] = {};
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> finished_ = 0;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GemmLoad>> GemmLoad::Start(int device, const Shape& shape) {
  auto load = std::make_unique<CublasLoad>(device, shape);
  RETURN_IF_ERROR(load->Begin());
  return load;
}

}  // namespace tandem
