#include "kvtransfer/nvlink/page_copy_kernel.h"

#include <algorithm>

#include "kvtransfer/word_sum.h"

namespace tandem {
namespace {

// Stores to a peer are posted, so what bounds the rate of a multiprocessor is how many loads it has in flight: each
// lane issues all kVectors of its loads before the first store.
// With kSums, gives the lane's part of the sum; `first_word` is the destination's place in its pool.
template <int kLanes, int kVectors, bool kCopies, bool kSums>
__device__ uint64_t CopySegment(const uint4* source, uint4* destination, uint32_t vectors, uint32_t lane,
                                uint64_t first_word) {
  uint64_t sum = 0;
  for (uint32_t first = lane; first < vectors; first += kLanes * kVectors) {
    uint4 held[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      // Past the first-level cache: nothing is read twice.
      if (first + i * kLanes < vectors) held[i] = __ldcg(source + first + i * kLanes);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const uint32_t vector = first + i * kLanes;
      if (vector >= vectors) continue;
      if (kCopies) destination[vector] = held[i];
      if (kSums) {
        const uint64_t low = held[i].x | static_cast<uint64_t>(held[i].y) << 32;
        const uint64_t high = held[i].z | static_cast<uint64_t>(held[i].w) << 32;
        sum += SumOfWord(low, first_word + 2 * vector) + SumOfWord(high, first_word + 2 * vector + 1);
      }
    }
  }
  return sum;
}

// Adds up the parts of a group of lanes.
template <int kLanes>
__device__ void AddToPage(unsigned long long* page, unsigned long long part, uint32_t thread) {
  // Groups of one warp may be at different segments.
  const uint32_t lanes_of_group = kLanes == 32 ? 0xFFFFFFFFu : ((1u << kLanes) - 1) << (thread % 32 / kLanes * kLanes);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    part += __shfl_down_sync(lanes_of_group, part, distance, kLanes);
  }
  if (thread % kLanes == 0) atomicAdd(page, part);
}

// Which run, and which of its vectors.
struct Segment {
  uint32_t run;
  uint32_t first_vector;
  uint32_t vectors;
};

__device__ uint32_t VectorsFrom(uint32_t first, uint32_t run_vectors) {
  return min(run_vectors - first, kSegmentVectors);
}

__device__ Segment FindSegment(const PageCopyArguments& arguments, uint32_t index) {
  const CopyShape& shape = arguments.shape;
  if (shape.uniform_vectors > 0) {
    const uint32_t run = index / shape.segments_per_run;
    const uint32_t first = (index - run * shape.segments_per_run) * kSegmentVectors;
    return {run, first, VectorsFrom(first, shape.uniform_vectors)};
  }
  // The last run that begins at or before the segment; runs without bytes have none.
  uint32_t low = 0, high = shape.num_runs;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (arguments.extents[middle].first_segment <= index ? low : high) = middle;
  }
  const DeviceExtent extent = arguments.extents[low];
  const uint32_t first = (index - extent.first_segment) * kSegmentVectors;
  return {low, first, VectorsFrom(first, extent.vectors)};
}

// The last block to finish sets the flag. Each block's stores come before its count for all blocks of this GPU, and so,
// by the last one's release, before the flag for everyone: one fence that waits for the other end of the link is
// enough.
__device__ void Announce(const PageCopyArguments& arguments) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(arguments.finished_blocks, 1) + 1 < gridDim.x) return;
  *arguments.finished_blocks = 0;
  __threadfence_system();
  if (arguments.flag != nullptr) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(arguments.flag), "r"(arguments.flag_value) : "memory");
  }
}

template <int kLanes, int kVectors, bool kCopies, bool kSums>
__device__ void CopyRuns(const PageCopyArguments& arguments, const DeviceRun* runs) {
  const uint32_t thread = blockIdx.x * kPageCopyThreads + threadIdx.x;
  const uint32_t groups = gridDim.x * (kPageCopyThreads / kLanes);
  const int shift = arguments.shape.unit_shift;
  for (uint64_t index = thread / kLanes; index < arguments.shape.num_segments; index += groups) {
    const Segment segment = FindSegment(arguments, static_cast<uint32_t>(index));
    const DeviceRun run = runs[segment.run];
    const uint64_t to = static_cast<uint64_t>(run.destination) << shift;
    const uint8_t* from = arguments.source + (static_cast<uint64_t>(run.source) << shift);
    if (!kCopies && arguments.work == PageCopyWork::kSumDestination) from = arguments.destination + to;
    const uint64_t sum = CopySegment<kLanes, kVectors, kCopies, kSums>(
        reinterpret_cast<const uint4*>(from) + segment.first_vector,
        reinterpret_cast<uint4*>(arguments.destination + to) + segment.first_vector, segment.vectors, thread % kLanes,
        (arguments.destination_offset + to) / 8 + 2 * uint64_t{segment.first_vector});
    if (kSums) AddToPage<kLanes>(arguments.sums + arguments.page_of_run[segment.run], sum, thread);
  }
  if (kCopies) Announce(arguments);
}

template <int kLanes, int kVectors, bool kCopies, bool kSums>
__global__ __launch_bounds__(kPageCopyThreads) void PageCopyKernel(
    const __grid_constant__ PageCopyArguments arguments) {
  CopyRuns<kLanes, kVectors, kCopies, kSums>(arguments, arguments.runs);
}

struct LaunchRuns {
  DeviceRun runs[kLaunchRuns];
};
static_assert(sizeof(PageCopyArguments) + sizeof(LaunchRuns) <= 4096, "more than parameters may hold");

template <int kLanes, int kVectors>
__global__ __launch_bounds__(kPageCopyThreads) void LaunchRunsKernel(
    const __grid_constant__ PageCopyArguments arguments, const __grid_constant__ LaunchRuns list) {
  CopyRuns<kLanes, kVectors, true, false>(arguments, list.runs);
}

// Which kernel reads lists of the device.
template <int kLanes, int kVectors>
auto* ChooseKernel(const PageCopyArguments& arguments) {
  if (arguments.sums == nullptr) return PageCopyKernel<kLanes, kVectors, true, false>;
  if (arguments.work != PageCopyWork::kCopy) return PageCopyKernel<kLanes, kVectors, false, true>;
  return PageCopyKernel<kLanes, kVectors, true, true>;
}

}  // namespace

cudaError_t LaunchPageCopy(const PageCopyArguments& arguments, const DeviceRun* launch_runs, int blocks,
                           cudaStream_t stream) {
  // Eight lanes read a 128-byte line; nine loads of theirs are 1,152 bytes, the latent of one token of DeepSeek's
  // attention.
  constexpr int kSmallLanes = 8, kSmallVectors = 9, kLanes = 32, kVectors = kSegmentVectors / 32;
  const bool small = arguments.shape.has_small_runs;
  // No block without work.
  const uint32_t groups_per_block = kPageCopyThreads / (small ? kSmallLanes : kLanes);
  const uint32_t useful_blocks = (arguments.shape.num_segments + groups_per_block - 1) / groups_per_block;
  const uint32_t grid = std::clamp<uint32_t>(useful_blocks, 1, std::max(blocks, 1));
  // Not by <<<>>>, whose error would have to be told from those that other calls left behind.
  auto launch = [&](auto* kernel, void** parameters) {
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, kPageCopyThreads, parameters, 0, stream);
  };
  void* parameters[] = {const_cast<PageCopyArguments*>(&arguments), nullptr};
  if (launch_runs == nullptr) {
    return launch(
        small ? ChooseKernel<kSmallLanes, kSmallVectors>(arguments) : ChooseKernel<kLanes, kVectors>(arguments),
        parameters);
  }
  LaunchRuns list;
  for (uint32_t i = 0; i < arguments.shape.num_runs; ++i) list.runs[i] = launch_runs[i];
  parameters[1] = &list;
  return launch(small ? LaunchRunsKernel<kSmallLanes, kSmallVectors> : LaunchRunsKernel<kLanes, kVectors>, parameters);
}

}  // namespace tandem
