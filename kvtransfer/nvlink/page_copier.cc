#include "kvtransfer/nvlink/page_copier.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/copy_list.h"
#include "kvtransfer/nvlink/cuda_error.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<PageCopier>> PageCopier::Create(const Options& options) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "cudaSetDevice"));
  std::unique_ptr<PageCopier> copier(new PageCopier(options));
  for (int i = 0; i < options.max_pushes; ++i) RETURN_IF_ERROR(copier->AddSlot());
  return copier;
}

PageCopier::~PageCopier() {
  cudaSetDevice(options_.device);
  for (Slot& slot : slots_) {
    if (slot.is_used) cudaEventSynchronize(slot.ended);
    if (slot.ended != nullptr) cudaEventDestroy(slot.ended);
    cudaFreeHost(slot.host);
    cudaFree(slot.device);
    cudaFree(slot.finished_blocks);
  }
}

absl::Status PageCopier::AddSlot() {
  const size_t bytes = options_.max_runs * (sizeof(DeviceRun) + sizeof(DeviceExtent));
  Slot& slot = slots_.emplace_back();  // The destructor frees what was made of it.
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&slot.host), bytes), "cudaMallocHost"));
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&slot.device), bytes), "cudaMalloc"));
  RETURN_IF_ERROR(
      CudaStatus(cudaMalloc(reinterpret_cast<void**>(&slot.finished_blocks), sizeof(uint32_t)), "cudaMalloc"));
  RETURN_IF_ERROR(CudaStatus(cudaMemset(slot.finished_blocks, 0, sizeof(uint32_t)), "cudaMemset"));
  return CudaStatus(cudaEventCreateWithFlags(&slot.ended, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

absl::StatusOr<PageCopier::Slot*> PageCopier::FindSlot() {
  for (Slot& slot : slots_) {
    if (!slot.is_used) return &slot;
    const cudaError_t state = cudaEventQuery(slot.ended);
    if (state == cudaSuccess) return &slot;
    if (state == cudaErrorNotReady) cudaGetLastError();  // Stays behind otherwise, for others to stumble over.
    if (state != cudaErrorNotReady) return CudaStatus(state, "page copy");
  }
  return absl::ResourceExhaustedError(absl::StrCat(options_.max_pushes, " pushes are under way"));
}

absl::Status PageCopier::Enqueue(const Push& push, cudaStream_t stream) {
  if (push.runs.size() > options_.max_runs) {
    return absl::OutOfRangeError(
        absl::StrCat("a push of ", push.runs.size(), " runs; at most ", options_.max_runs, " fit"));
  }
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options_.device), "cudaSetDevice"));
  ASSIGN_OR_RETURN(Slot * slot, FindSlot());
  ASSIGN_OR_RETURN(CopyShape shape, PackRuns(push.runs, push.source_bytes, push.destination_bytes,
                                             reinterpret_cast<DeviceRun*>(slot->host),
                                             reinterpret_cast<DeviceExtent*>(slot->host + extents_offset())));
  auto upload = [&](size_t offset, size_t bytes) {
    return CudaStatus(
        cudaMemcpyAsync(slot->device + offset, slot->host + offset, bytes, cudaMemcpyHostToDevice, stream),
        "cudaMemcpyAsync");
  };
  const bool has_extents = shape.uniform_vectors == 0 && shape.num_runs > 0;
  RETURN_IF_ERROR(upload(0, shape.num_runs * sizeof(DeviceRun)));
  if (has_extents) RETURN_IF_ERROR(upload(extents_offset(), shape.num_runs * sizeof(DeviceExtent)));
  PageCopyArguments arguments{.source = push.source,
                              .destination = push.destination,
                              .runs = reinterpret_cast<const DeviceRun*>(slot->device),
                              .shape = shape,
                              .finished_blocks = slot->finished_blocks,
                              .flag = push.flag,
                              .flag_value = push.flag_value};
  if (has_extents) arguments.extents = reinterpret_cast<const DeviceExtent*>(slot->device + extents_offset());
  slot->is_used = true;
  RETURN_IF_ERROR(CudaStatus(LaunchPageCopy(arguments, options_.blocks, stream), "page copy"));
  return CudaStatus(cudaEventRecord(slot->ended, stream), "cudaEventRecord");
}

}  // namespace tandem
