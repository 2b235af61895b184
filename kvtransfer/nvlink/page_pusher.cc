#include "kvtransfer/nvlink/page_pusher.h"

#include <utility>

#include "common/log.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/current_device.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<PagePusher>> PagePusher::Create(Options options, std::shared_ptr<PageCopier> copier) {
  const CurrentDevice current(options.device);
  RETURN_IF_ERROR(current.status());
  std::unique_ptr<PagePusher> pusher(new PagePusher(std::move(options), std::move(copier)));
  int least = 0, greatest = 0;
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithPriority(&pusher->stream_, cudaStreamNonBlocking, greatest),
                             "cudaStreamCreateWithPriority"));
  RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&pusher->ended_, cudaEventDisableTiming), "cudaEventCreateWithFlags"));
  return pusher;
}

PagePusher::~PagePusher() {
  const CurrentDevice current(options_.device);
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (ended_ != nullptr) cudaEventDestroy(ended_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<CopyChoice> PagePusher::Push(absl::Span<const CopyRun> runs, const PageCopier::Push& push,
                                            std::optional<CopyChoice> forced) {
  const CopyLoad load = MakeCopyLoad(runs, options_.source_is_computing != nullptr && options_.source_is_computing(),
                                     options_.sees_destination);
  const CopyChoice choice = forced.value_or(ChooseCopyMethod(load));
  if (choice.method == CopyMethod::kCopyEngine) {
    RETURN_IF_ERROR(copier_->EnqueueCopyEngine(runs, push, stream_));
  } else {
    ASSIGN_OR_RETURN(const PageCopier::List list, copier_->Upload(runs, stream_));
    RETURN_IF_ERROR(copier_->Enqueue(list, push, choice.blocks));
  }
  if (last_choice_ != choice) {
    last_choice_ = choice;
    Log(LogLevel::kDebug, "copy method",
        {{"method", CopyMethodName(choice.method)},
         {"blocks", choice.blocks},
         {"runs", load.runs},
         {"bytes", load.bytes},
         {"source_is_computing", load.source_is_computing},
         {"sees_destination", load.sees_destination}});
  }
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(ended_, stream_), "cudaEventRecord"));
  return choice;
}

absl::StatusOr<bool> PagePusher::PollEnded() {
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  const cudaError_t state = cudaEventQuery(ended_);  // Success also where nothing was recorded yet.
  if (state == cudaSuccess) return true;
  if (state != cudaErrorNotReady) return CudaStatus(state, "page copy");
  cudaGetLastError();  // Stays behind otherwise, for others to stumble over.
  return false;
}

}  // namespace tandem
