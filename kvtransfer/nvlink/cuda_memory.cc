#include "kvtransfer/nvlink/cuda_memory.h"

#include <utility>

#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/copy_method.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/current_device.h"
#include "kvtransfer/nvlink/page_copier.h"

namespace tandem {
namespace {

constexpr size_t kMaxRuns = 1 << 18;
constexpr int kMaxLists = 4;

// Of the device, or pinned memory of the host.
class CudaBuffer final : public PoolBuffer {
 public:
  CudaBuffer(int device, PoolMemory::Place place) : device_(device), place_(place) {}
  ~CudaBuffer() override {
    const CurrentDevice current(device_);
    place_ == PoolMemory::Place::kHost ? cudaFreeHost(base_) : cudaFree(base_);
  }
  absl::Status Allocate(uint64_t bytes) {
    const CurrentDevice current(device_);
    RETURN_IF_ERROR(current.status());
    auto** base = reinterpret_cast<void**>(&base_);
    if (place_ == PoolMemory::Place::kHost) {
      return CudaStatus(cudaHostAlloc(base, bytes, cudaHostAllocPortable), "cudaHostAlloc");
    }
    return CudaStatus(cudaMalloc(base, bytes), "cudaMalloc");
  }
  uint8_t* base() const override { return base_; }

 private:
  const int device_;
  const PoolMemory::Place place_;
  uint8_t* base_ = nullptr;
};

class CudaCopy final : public PendingCopy {
 public:
  explicit CudaCopy(std::shared_ptr<const CudaSourceEvent> end) : end_(std::move(end)) {}
  absl::StatusOr<bool> PollEnded() override { return end_->PollReady(); }

 private:
  const std::shared_ptr<const CudaSourceEvent> end_;
};

class CudaMemory final : public PoolMemory {
 public:
  CudaMemory(int device, cudaStream_t stream, std::unique_ptr<PageCopier> copier)
      : device_(device), stream_(stream), copier_(std::move(copier)) {}
  ~CudaMemory() override {
    const CurrentDevice current(device_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  bool is_device() const override { return true; }
  void UseOnThisThread() const override { cudaSetDevice(device_); }
  absl::StatusOr<std::unique_ptr<PoolBuffer>> Allocate(uint64_t bytes, Place place) override {
    auto buffer = std::make_unique<CudaBuffer>(device_, place);
    RETURN_IF_ERROR(buffer->Allocate(bytes));
    return buffer;
  }

  absl::StatusOr<std::unique_ptr<PoolBuffer>> MakeCopy(absl::Span<const uint8_t> content) override {
    ASSIGN_OR_RETURN(std::unique_ptr<PoolBuffer> buffer, Allocate(content.size(), Place::kPool));
    RETURN_IF_ERROR(Copy(buffer->base(), content.data(), content.size()));
    return buffer;
  }

  absl::Status Read(const uint8_t* from, absl::Span<uint8_t> out) override {
    return Copy(out.data(), from, out.size());
  }

  absl::StatusOr<std::unique_ptr<PendingCopy>> StartCopy(const uint8_t* from, uint8_t* to,
                                                         absl::Span<const CopyRun> runs) override {
    absl::MutexLock lock(&mu_);
    // Bounds are the callers', who cut the runs.
    constexpr uint64_t kNoBound = ~uint64_t{0};
    const PageCopier::Push push = {.source = {from, kNoBound}, .destination = {to, kNoBound}};
    if (MakeCopyLoad(runs, false, true).is_aligned) {
      ASSIGN_OR_RETURN(const PageCopier::List list, copier_->Upload(runs, stream_));
      RETURN_IF_ERROR(copier_->Enqueue(list, push));
    } else {
      RETURN_IF_ERROR(copier_->EnqueueCopyEngine(runs, push, stream_));
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const CudaSourceEvent> end, CudaSourceEvent::Record(device_, stream_));
    return std::make_unique<CudaCopy>(std::move(end));
  }

  absl::Status AddSums(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                       absl::Span<const uint32_t> page_of_run, PageSums& sums) override {
    for (size_t first = 0; first < runs.size(); first += kMaxRuns) {
      RETURN_IF_ERROR(
          AddSumsOfList(pool, side, runs.subspan(first, kMaxRuns), page_of_run.subspan(first, kMaxRuns), sums));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AddSumsOfList(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                             absl::Span<const uint32_t> page_of_run, PageSums& sums) {
    absl::MutexLock lock(&mu_);
    absl::StatusOr<PageCopier::List> list = copier_->Upload(runs, stream_, page_of_run);
    if (absl::IsUnavailable(list.status())) {
      RETURN_IF_ERROR(Wait());  // Copies hold all lists.
      list = copier_->Upload(runs, stream_, page_of_run);
    }
    RETURN_IF_ERROR(list.status());
    RETURN_IF_ERROR(copier_->EnqueueSums(*list, side, {pool, ~uint64_t{0}}));
    RETURN_IF_ERROR(Wait());
    for (size_t page = 0; page < list->sums().size(); ++page) sums[page] += list->sums()[page];
    return absl::OkStatus();
  }

  absl::Status Wait() {
    const CurrentDevice current(device_);
    RETURN_IF_ERROR(current.status());
    return CudaStatus(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  absl::Status Copy(uint8_t* to, const uint8_t* from, size_t bytes) const {
    const CurrentDevice current(device_);
    RETURN_IF_ERROR(current.status());
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cudaStreamPerThread), "cudaMemcpyAsync"));
    return CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "cudaMemcpyAsync");
  }

  const int device_;
  const cudaStream_t stream_;
  absl::Mutex mu_;
  const std::unique_ptr<PageCopier> copier_ ABSL_PT_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<PoolMemory>> NewCudaMemory(int device) {
  const CurrentDevice current(device);
  RETURN_IF_ERROR(current.status());
  ASSIGN_OR_RETURN(std::unique_ptr<PageCopier> copier,
                   PageCopier::Create({.device = device, .max_runs = kMaxRuns, .max_lists = kMaxLists}));
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
  return std::make_unique<CudaMemory>(device, stream, std::move(copier));
}

absl::StatusOr<std::shared_ptr<const CudaSourceEvent>> CudaSourceEvent::Record(int device, cudaStream_t stream) {
  const CurrentDevice current(device);
  RETURN_IF_ERROR(current.status());
  std::shared_ptr<CudaSourceEvent> self(new CudaSourceEvent(device));
  RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&self->event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"));
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(self->event_, stream), "cudaEventRecord"));
  return std::shared_ptr<const CudaSourceEvent>(std::move(self));
}

CudaSourceEvent::~CudaSourceEvent() {
  const CurrentDevice current(device_);
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::StatusOr<bool> CudaSourceEvent::PollReady() const {
  const CurrentDevice current(device_);
  RETURN_IF_ERROR(current.status());
  return IsOver(event_);
}

}  // namespace tandem
