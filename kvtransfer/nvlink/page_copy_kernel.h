#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kvtransfer/nvlink/copy_shape.h"

namespace tandem {

enum class PageCopyWork {
  kCopy,            // And sums, if there is a place for them.
  kSumSource,       // Only sums.
  kSumDestination,  // Only sums, of what lies there already.
};

// One push, as the kernel gets it. Pointers are the device's.
struct PageCopyArguments {
  const uint8_t* source = nullptr;  // The pools' beginnings; the destination's may be a peer's.
  uint8_t* destination = nullptr;
  const DeviceRun* runs = nullptr;        // [shape.num_runs]; not read where they come with the launch.
  const DeviceExtent* extents = nullptr;  // [shape.num_runs]; not read where runs are alike.
  CopyShape shape;
  uint32_t* finished_blocks = nullptr;  // Of this device; 0 before and after.
  uint32_t* flag = nullptr;             // Null: none. Any memory that the device reaches, also a peer's or the host's.
  uint32_t flag_value = 0;
  // For sums (kvtransfer/page_sums.h), in this device's memory; null: none.
  unsigned long long* sums = nullptr;     // Of the hand-over's pages; added to.
  const uint32_t* page_of_run = nullptr;  // [shape.num_runs]
  uint64_t destination_offset = 0;        // Of `destination` in its pool.
  PageCopyWork work = PageCopyWork::kCopy;
};

inline constexpr int kPageCopyThreads = 512;
// So many alike runs can come with the launch, among its parameters, instead of by an upload before it.
inline constexpr uint32_t kLaunchRuns = 480;

// Enqueues the copy on at most `blocks` thread blocks of kPageCopyThreads, and after it the flag, with a release at
// system scope: whoever reads its value, with an acquire, sees all bytes. `launch_runs`: [shape.num_runs], at most
// kLaunchRuns, in host memory, read before this returns; null: arguments.runs. With sums: null.
cudaError_t LaunchPageCopy(const PageCopyArguments& arguments, const DeviceRun* launch_runs, int blocks,
                           cudaStream_t stream);

}  // namespace tandem
