#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/page_copy_kernel.h"
#include "kvtransfer/page_sums.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// Pushes pages from this device's pool into another, which may be a peer's, by a kernel of its own or by the copy
// engine, which takes no multiprocessor but spends a microsecond and more on every run, however short.
//
// The kernel's list of runs is uploaded once and serves any number of pushes: the layer groups of a hand-over are the
// same runs, further on in each page. A short list of alike runs needs no upload.
//
// Thread-safety: not thread-safe; one thread, which waits in Create and in the destructor only.
// Ownership: owns the memory of the lists, which it outlives; borrows pools and streams, which outlive what was
// enqueued.
class PageCopier {
  // Room for one list.
  struct Slot {
    uint8_t* host = nullptr;    // Pinned.
    uint8_t* device = nullptr;  // As `host`: [max_runs] DeviceRun, DeviceExtent, then uint32_t, the runs' pages.
    uint32_t* finished_blocks = nullptr;
    cudaEvent_t ended = nullptr;  // The last push that reads it.
    bool is_held = false;         // By a List.
    bool goes_with_launch = false;
    CopyShape shape;
    cudaStream_t stream = nullptr;  // Of its upload and its pushes.
    uint32_t num_pages = 0;         // Whose sums are taken; 0: none are.
    uint64_t* host_sums = nullptr;  // [max_runs], pinned.
    unsigned long long* device_sums = nullptr;
  };

 public:
  struct Options {
    int device = 0;
    size_t max_runs = 1 << 18;  // Of one list.
    int max_lists = 8;          // That are held, or read by a push that has not ended.
  };

  // A copy list in the device's memory. Its place is free again when it is destroyed and its last push has ended.
  class List {
   public:
    List(List&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
    List& operator=(List&& other) noexcept {
      std::swap(slot_, other.slot_);
      return *this;
    }
    ~List() {
      if (slot_ != nullptr) slot_->is_held = false;
    }

    // Of the last push, once it has ended: what it copied to each page (kvtransfer/page_sums.h). Empty for a list
    // without pages.
    absl::Span<const uint64_t> sums() const { return {slot_->host_sums, slot_->num_pages}; }

   private:
    friend class PageCopier;
    explicit List(Slot* slot) : slot_(slot) { slot_->is_held = true; }
    Slot* slot_;
  };

  // Where in a pool a push begins: the runs' offsets count from there.
  template <typename Byte>
  struct Place {
    Byte* base = nullptr;
    uint64_t bytes = 0;   // Of the pool.
    uint64_t offset = 0;  // A multiple of 16.
  };
  struct Push {
    Place<const uint8_t> source;
    Place<uint8_t> destination;
    uint32_t* flag = nullptr;  // Gets `flag_value` when all bytes can be read; null: none.
    uint32_t flag_value = 0;
  };

  // RESOURCE_EXHAUSTED when the device or the host has no memory for the lists.
  static absl::StatusOr<std::unique_ptr<PageCopier>> Create(const Options& options);
  // Waits for what was enqueued.
  ~PageCopier();

  // Packs a list and enqueues its upload on `stream`, if it needs one. `page_of_run`: for sums, the page to which each
  // run writes; empty: without sums. INVALID_ARGUMENT, OUT_OF_RANGE: as of PackRuns,
  // or too many runs. UNAVAILABLE: max_lists are in use, try again when a push has ended. INTERNAL: the device failed,
  // and the copier with it.
  absl::StatusOr<List> Upload(absl::Span<const CopyRun> runs, cudaStream_t stream,
                              absl::Span<const uint32_t> page_of_run = {});
  // Enqueues a push by kernel on the stream of the list's upload. `blocks`: thread blocks, each of which keeps a
  // multiprocessor busy: more move bytes faster and take more from computing. INVALID_ARGUMENT: an offset that is no
  // multiple of 16. OUT_OF_RANGE: a run would leave a pool. Nothing was enqueued then. INTERNAL: the device failed, and
  // the copier with it.
  absl::Status Enqueue(const List& list, const Push& push, int blocks = 32);
  // Enqueues only the sums of a list with pages, of what lies at one side of its runs, in this device's memory, on at
  // most `blocks` thread blocks. `destination_offset`: where in the destination's pool the runs' destinations count
  // from. Errors as of Enqueue.
  absl::Status EnqueueSums(const List& list, PoolSide side, const Place<const uint8_t>& pool,
                           uint64_t destination_offset = 0, int blocks = 32);
  // Whether the list's last push has ended. INTERNAL: the device failed, and the copier with it.
  absl::StatusOr<bool> PollEnded(const List& list);
  // As Enqueue, by the copy engine, without sums, on `stream`; offsets and runs of any alignment. The flag must be a
  // multiple of 4 and in memory that this device maps.
  absl::Status EnqueueCopyEngine(absl::Span<const CopyRun> runs, const Push& push, cudaStream_t stream);

 private:
  using WriteFlagFunction = std::add_pointer_t<decltype(cuStreamWriteValue32)>;
  explicit PageCopier(const Options& options) : options_(options) {}
  absl::Status AddSlot();
  // One that is not held, and that no push reads any more.
  absl::StatusOr<Slot*> FindSlot();
  size_t extents_offset() const { return options_.max_runs * sizeof(DeviceRun); }
  size_t pages_offset() const { return options_.max_runs * (sizeof(DeviceRun) + sizeof(DeviceExtent)); }
  PageCopyArguments Arguments(const Slot& slot) const;
  // Launches, with sums if the list has pages, and marks the list's end.
  absl::Status Launch(Slot& slot, const PageCopyArguments& arguments, int blocks);

  const Options options_;
  WriteFlagFunction write_flag_ = nullptr;
  std::vector<Slot> slots_;  // As many from the start on: lists point to them.
  // Of the last call of EnqueueCopyEngine; kept for their memory.
  std::vector<void*> engine_sources_, engine_destinations_;
  std::vector<size_t> engine_sizes_;
};

}  // namespace tandem
