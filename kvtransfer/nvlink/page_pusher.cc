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
                                            std::optional<CopyChoice> forced, SumsWanted sums) {
  RETURN_IF_ERROR(CollectSums());
  const CopyLoad load = MakeCopyLoad(runs, options_.source_is_computing != nullptr && options_.source_is_computing(),
                                     options_.sees_destination);
  const CopyChoice choice = forced.value_or(ChooseCopyMethod(load));
  if (choice.method == CopyMethod::kKernel || sums.sums != nullptr) {
    // First: it is what may have to be tried again.
    ASSIGN_OR_RETURN(PageCopier::List list, copier_->Upload(runs, stream_, sums.page_of_run));
    if (choice.method == CopyMethod::kKernel) {
      RETURN_IF_ERROR(copier_->Enqueue(list, push, choice.blocks));
    } else {
      RETURN_IF_ERROR(copier_->EnqueueSums(list, PoolSide::kSource, push.source, push.destination.offset));
    }
    if (sums.sums != nullptr) sums_.push_back({std::move(list), std::move(sums.sums)});
  }
  if (choice.method == CopyMethod::kCopyEngine) RETURN_IF_ERROR(copier_->EnqueueCopyEngine(runs, push, stream_));
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

absl::Status PagePusher::CollectSums() {
  while (!sums_.empty()) {
    const PendingSums& first = sums_.front();
    ASSIGN_OR_RETURN(const bool ended, copier_->PollEnded(first.list));
    if (!ended) return absl::OkStatus();
    const absl::Span<const uint64_t> sums = first.list.sums();
    for (size_t page = 0; page < sums.size(); ++page) (*first.sums)[page] += sums[page];
    sums_.pop_front();
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> PagePusher::PollEnded() {
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  RETURN_IF_ERROR(CollectSums());
  ASSIGN_OR_RETURN(const bool ended, IsOver(ended_));
  return ended && sums_.empty();
}

}  // namespace tandem
