#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/page_copy_kernel.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Pushes pages from this device's pool into another, which may be a peer's, by a kernel of its own: the copy engine
// spends microseconds on every run, however short.
//
// Thread-safety: not thread-safe; one thread, which may wait for nothing: Push only enqueues.
// Ownership: owns the memory for copy lists; borrows pools and streams, which outlive what was enqueued.
class PageCopier {
 public:
  struct Options {
    int device = 0;
    // Thread blocks, each of which keeps a multiprocessor busy: more move bytes faster and take more from computing.
    int blocks = 16;
    size_t max_runs = 1 << 18;  // Of one push.
    int max_pushes = 8;         // That are enqueued and have not ended.
  };
  // RESOURCE_EXHAUSTED when the device or the host has no memory for the lists.
  static absl::StatusOr<std::unique_ptr<PageCopier>> Create(const Options& options);
  // Waits for what was enqueued.
  ~PageCopier();

  struct Push {
    const uint8_t* source = nullptr;  // The pools' beginnings.
    uint64_t source_bytes = 0;
    uint8_t* destination = nullptr;
    uint64_t destination_bytes = 0;
    absl::Span<const CopyRun> runs;
    uint32_t* flag = nullptr;  // Gets `flag_value` when all bytes can be read; null: none.
    uint32_t flag_value = 0;
  };
  // Enqueues on `stream`, behind what it holds already. INVALID_ARGUMENT, OUT_OF_RANGE: as of PackRuns, or too many
  // runs. RESOURCE_EXHAUSTED: max_pushes have not ended. INTERNAL: the device failed. Nothing was enqueued then.
  absl::Status Enqueue(const Push& push, cudaStream_t stream);

 private:
  // The list of one push, and when it was read.
  struct Slot {
    uint8_t* host = nullptr;    // Pinned.
    uint8_t* device = nullptr;  // As `host`: [max_runs] DeviceRun, then [max_runs] DeviceExtent.
    uint32_t* finished_blocks = nullptr;
    cudaEvent_t ended = nullptr;
    bool is_used = false;
  };
  explicit PageCopier(const Options& options) : options_(options) {}
  absl::Status AddSlot();
  // One that no push uses any more.
  absl::StatusOr<Slot*> FindSlot();
  size_t extents_offset() const { return options_.max_runs * sizeof(DeviceRun); }

  const Options options_;
  std::vector<Slot> slots_;
};

}  // namespace tandem
