#pragma once

#include <cuda_runtime_api.h>

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
// Thread-safety: not thread-safe; one thread, which waits only in the destructor.
// Ownership: owns stream and copier; borrows the pools, which outlive it.
class PagePusher {
 public:
  struct Options {
    int device = 0;
    size_t max_runs = 1 << 16;  // Of one push.
    int max_lists = 8;          // Pushes by kernel that have not ended.
    bool sees_destination = true;
    // Whether kernels of others fill the device now; null: never. An engine that prefills says yes.
    std::function<bool()> source_is_computing;
  };
  static absl::StatusOr<std::unique_ptr<PagePusher>> Create(Options options);
  // Waits for what was enqueued.
  ~PagePusher();

  // Enqueues one push, by the rule of ChooseCopyMethod or as `forced` says, and tells how. Errors as of PageCopier;
  // RESOURCE_EXHAUSTED: try again when an earlier push has ended.
  absl::StatusOr<CopyChoice> Push(absl::Span<const CopyRun> runs, const PageCopier::Push& push,
                                  std::optional<CopyChoice> forced = std::nullopt);
  // Whether all bytes of all pushes so far can be read at the destination. INTERNAL: the device failed.
  absl::StatusOr<bool> PollEnded();
  // The pushes' own: wait on it for what they read, and record there what waits for them.
  cudaStream_t stream() const { return stream_; }
  // For lists that serve several pushes.
  PageCopier& copier() { return *copier_; }

 private:
  explicit PagePusher(Options options) : options_(std::move(options)) {}
  const Options options_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ended_ = nullptr;  // All pushes so far.
  std::unique_ptr<PageCopier> copier_;
  std::optional<CopyChoice> last_choice_;
};

}  // namespace tandem
