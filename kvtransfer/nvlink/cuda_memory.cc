#include "kvtransfer/nvlink/cuda_memory.h"

#include <optional>
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
constexpr int kMaxLists = 4;  // So many sums may be awaited at a time, and copies be under way.

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
  void Wait() override { (void)end_->Wait(); }

 private:
  const std::shared_ptr<const CudaSourceEvent> end_;
};

// A copier with a stream of its own.
//
// Thread-safety: `mu` guards the copier and its lists, but not the wait for an event.
// Ownership: owns both.
struct CudaLane {
  CudaLane(int device_number, cudaStream_t own_stream, std::unique_ptr<PageCopier> own_copier)
      : device(device_number), stream(own_stream), copier(std::move(own_copier)) {}
  CudaLane(const CudaLane&) = delete;
  CudaLane& operator=(const CudaLane&) = delete;
  ~CudaLane() {
    const CurrentDevice current(device);
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  static absl::StatusOr<std::unique_ptr<CudaLane>> Create(int device) {
    const CurrentDevice current(device);
    RETURN_IF_ERROR(current.status());
    ASSIGN_OR_RETURN(std::unique_ptr<PageCopier> copier,
                     PageCopier::Create({.device = device, .max_runs = kMaxRuns, .max_lists = kMaxLists}));
    int least = 0, greatest = 0;
    RETURN_IF_ERROR(
        CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange"));
    cudaStream_t stream = nullptr;
    RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
                               "cudaStreamCreateWithPriority"));
    return std::make_unique<CudaLane>(device, stream, std::move(copier));
  }

  const int device;
  const cudaStream_t stream;
  absl::Mutex mu;
  const std::unique_ptr<PageCopier> copier ABSL_PT_GUARDED_BY(mu);
};

// Thread-safety: thread-safe. Copies and sums have a lane each: who waits for sums holds up no copy.
// Ownership: owns the lanes.
class CudaMemory final : public PoolMemory {
 public:
  CudaMemory(int device, std::unique_ptr<CudaLane> copies, std::unique_ptr<CudaLane> sums)
      : device_(device), copies_(std::move(copies)), sums_(std::move(sums)) {}

  bool is_device() const override { return true; }
  void UseOnThisThread() const override { cudaSetDevice(device_); }
  void WaitForDevice() const override {
    const CurrentDevice current(device_);
    cudaDeviceSynchronize();
  }
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
    // Bounds are the callers', who cut the runs.
    constexpr uint64_t kNoBound = ~uint64_t{0};
    const PageCopier::Push push = {.source = {from, kNoBound}, .destination = {to, kNoBound}};
    CudaLane& lane = *copies_;
    absl::MutexLock lock(&lane.mu);
    if (MakeCopyLoad(runs, false, true).is_aligned) {
      ASSIGN_OR_RETURN(const PageCopier::List list, lane.copier->Upload(runs, lane.stream));
      RETURN_IF_ERROR(lane.copier->Enqueue(list, push));
    } else {
      RETURN_IF_ERROR(lane.copier->EnqueueCopyEngine(runs, push, lane.stream));
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const CudaSourceEvent> end, CudaSourceEvent::Record(device_, lane.stream));
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
    CudaLane& lane = *sums_;
    std::shared_ptr<const CudaSourceEvent> end;
    auto enqueue = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane.mu) -> absl::StatusOr<PageCopier::List> {
      ASSIGN_OR_RETURN(PageCopier::List list, lane.copier->Upload(runs, lane.stream, page_of_run));
      RETURN_IF_ERROR(lane.copier->EnqueueSums(list, side, {pool, ~uint64_t{0}}));
      ASSIGN_OR_RETURN(end, CudaSourceEvent::Record(device_, lane.stream));
      return list;
    };
    lane.mu.Lock();
    std::optional<absl::StatusOr<PageCopier::List>> list(enqueue());
    lane.mu.Unlock();
    absl::Status status = list->status();
    if (status.ok()) status = end->Wait();
    if (status.ok()) {
      const absl::Span<const uint64_t> found = (*list)->sums();
      for (size_t page = 0; page < found.size(); ++page) sums[page] += found[page];
    }
    absl::MutexLock lock(&lane.mu);
    list.reset();  // Under the lock: it gives its place back.
    return status;
  }

  absl::Status Copy(uint8_t* to, const uint8_t* from, size_t bytes) const {
    const CurrentDevice current(device_);
    RETURN_IF_ERROR(current.status());
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cudaStreamPerThread), "cudaMemcpyAsync"));
    return CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "cudaMemcpyAsync");
  }

  const int device_;
  const std::unique_ptr<CudaLane> copies_, sums_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PoolMemory>> NewCudaMemory(int device) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaLane> copies, CudaLane::Create(device));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaLane> sums, CudaLane::Create(device));
  return std::make_unique<CudaMemory>(device, std::move(copies), std::move(sums));
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

absl::Status CudaSourceEvent::Wait() const {
  const CurrentDevice current(device_);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

absl::StatusOr<bool> CudaSourceEvent::PollReady() const {
  const CurrentDevice current(device_);
  RETURN_IF_ERROR(current.status());
  return IsOver(event_);
}

}  // namespace tandem
