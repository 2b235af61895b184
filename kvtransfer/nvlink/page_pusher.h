#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/copy_method.h"
#include "kvtransfer/nvlink/page_copier.h"

namespace tandem {

// Pushes into one destination, each by the method that suits it, in order, on a stream of high priority.
//
// Thread-safety: not thread-safe; one thread, that of the copier, which waits only in Create and in the destructor: a
// copy that has begun cannot be called back, and ends when the device has carried it out. Ownership: owns the stream,
// shares the copier and its lists with other pushers; borrows the pools, which outlive it.
class PagePusher {
 public:
  struct Options {
    int device = 0;
    bool sees_destination = true;
    // Whether kernels of others fill the device now; null: never. An engine that prefills says yes.
    std::function<bool()> source_is_computing;
  };
  // Checksums of what is pushed: `sums` gets them by PollEnded or a later Push. Null: none.
  struct SumsWanted {
    std::shared_ptr<PageSums> sums;
    absl::Span<const uint32_t> page_of_run;
  };
  static absl::StatusOr<std::unique_ptr<PagePusher>> Create(Options options, std::shared_ptr<PageCopier> copier);
  // Waits for what was enqueued.
  ~PagePusher();

  // Enqueues one push, by the rule of ChooseCopyMethod or as `forced` says, and tells how. Errors as of PageCopier;
  // UNAVAILABLE: try again when an earlier push has ended.
  absl::StatusOr<CopyChoice> Push(absl::Span<const CopyRun> runs, const PageCopier::Push& push,
                                  std::optional<CopyChoice> forced = std::nullopt, SumsWanted sums = {});
  // Whether all bytes of all pushes so far can be read at the destination, and their sums are told. INTERNAL: the
  // device failed.
  absl::StatusOr<bool> PollEnded();
  // Hands over the sums of the pushes that have ended, whose lists others may then use. INTERNAL: the device failed.
  absl::Status CollectSums();
  // The pushes' own: wait on it for what they read, and record there what waits for them.
  cudaStream_t stream() const { return stream_; }
  // For lists that serve several pushes.
  PageCopier& copier() { return *copier_; }

 private:
  PagePusher(Options options, std::shared_ptr<PageCopier> copier)
      : options_(std::move(options)), copier_(std::move(copier)) {}
  struct PendingSums {
    PageCopier::List list;
    std::shared_ptr<PageSums> sums;
  };
  const Options options_;
  const std::shared_ptr<PageCopier> copier_;
  std::deque<PendingSums> sums_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ended_ = nullptr;  // All pushes so far.

  std::optional<CopyChoice> last_choice_;
};

}  // namespace tandem
