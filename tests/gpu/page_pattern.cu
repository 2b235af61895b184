#include "tests/gpu/page_pattern.h"

namespace tandem {
namespace {

constexpr int kThreads = 256, kBlocks = 264, kWatchThreads = 512;

__device__ uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 31)) * 0xBF58476D1CE4E5B9ull;
  return z ^ (z >> 29);
}

__device__ uint4 Vector(uint64_t seed, uint64_t index) {
  const uint64_t a = Mix(seed + 2 * index * 0x9E3779B97F4A7C15ull), b = Mix(~seed + 2 * index + 1);
  return {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), static_cast<uint32_t>(b),
          static_cast<uint32_t>(b >> 32)};
}

__device__ bool Differs(uint4 a, uint4 b) { return a.x != b.x || a.y != b.y || a.z != b.z || a.w != b.w; }

__device__ uint64_t Thread() { return blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; }
__device__ uint64_t Threads() { return gridDim.x * static_cast<uint64_t>(blockDim.x); }

__global__ void FillKernel(uint4* memory, uint64_t vectors, uint64_t seed, uint64_t first) {
  for (uint64_t i = Thread(); i < vectors; i += Threads()) memory[i] = Vector(seed, first + i);
}

// Past the caches: what was there before the push must not answer.
__device__ uint4 LoadFresh(const uint4* from) {
  uint4 value;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

__device__ unsigned long long WrongIn(const uint8_t* memory, const ExpectedRun& run, uint64_t seed, uint64_t thread,
                                      uint64_t threads) {
  unsigned long long wrong = 0;
  const auto* vectors = reinterpret_cast<const uint4*>(memory + run.destination);
  for (uint64_t i = thread; i < run.bytes / 16; i += threads) {
    wrong += Differs(LoadFresh(vectors + i), Vector(seed, run.source / 16 + i));
  }
  return wrong;
}

__global__ void CountWrongKernel(const uint8_t* memory, const ExpectedRun* runs, uint64_t num_runs, uint64_t seed,
                                 unsigned long long* wrong) {
  for (uint64_t run = blockIdx.x; run < num_runs; run += gridDim.x) {
    const unsigned long long count = WrongIn(memory, runs[run], seed, threadIdx.x, blockDim.x);
    if (count > 0) atomicAdd_system(wrong, count);
  }
}

__global__ void CountPoisonKernel(const uint4* memory, uint64_t vectors, uint32_t poison, unsigned long long* count) {
  unsigned long long mine = 0;
  for (uint64_t i = Thread(); i < vectors; i += Threads()) {
    mine += !Differs(memory[i], uint4{poison, poison, poison, poison});
  }
  if (mine > 0) atomicAdd_system(count, mine);
}

__device__ uint64_t Now() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ uint32_t LoadAcquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Waits until a word is `value`; false when that takes too long.
template <typename Load>
__device__ bool Await(Load load, uint32_t value, uint64_t patience_ns, bool* waited) {
  const uint64_t begin = Now();
  while (load() != value) {
    *waited = true;
    if (Now() - begin > patience_ns) return false;
  }
  return true;
}

__global__ __launch_bounds__(kWatchThreads) void WatchKernel(const __grid_constant__ Watch watch) {
  __shared__ bool came;
  __shared__ ExpectedRun runs[kMaxWatchedRuns];
  for (uint32_t transfer = 1; transfer <= watch.last; ++transfer) {
    bool waited = false;
    if (threadIdx.x == 0) {
      came = Await([&] { return *watch.announced; }, transfer, watch.patience_ns, &waited);
      __threadfence_system();
    }
    __syncthreads();
    // The list first, so that nothing lies between seeing the flag and reading the bytes.
    const uint32_t num_runs = watch.expected->num_runs;
    const uint64_t seed = watch.expected->seed;
    for (uint32_t i = threadIdx.x; came && i < num_runs; i += kWatchThreads) {
      runs[i] = {watch.expected->runs[i].source, watch.expected->runs[i].destination, watch.expected->runs[i].bytes};
    }
    __syncthreads();
    if (threadIdx.x == 0 && came) {
      waited = false;
      *watch.ready = transfer;
      came = Await([&] { return LoadAcquire(watch.flag); }, transfer, watch.patience_ns, &waited);
      if (came && waited) atomicAdd_system(watch.fresh, 1ull);
    }
    __syncthreads();
    if (!came) {
      if (threadIdx.x == 0) *watch.gave_up = transfer;
      return;
    }
    unsigned long long wrong = 0;
    for (uint32_t i = num_runs; i-- > 0;) wrong += WrongIn(watch.memory, runs[i], seed, threadIdx.x, kWatchThreads);
    if (wrong > 0) atomicAdd_system(watch.wrong, wrong);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) *watch.seen = transfer;
  }
}

}  // namespace

cudaError_t FillPattern(uint8_t* memory, uint64_t bytes, uint64_t seed, uint64_t first_vector, cudaStream_t stream) {
  const int blocks = bytes < (1 << 20) ? 8 : kBlocks;
  FillKernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<uint4*>(memory), bytes / 16, seed, first_vector);
  return cudaPeekAtLastError();
}

cudaError_t CountWrong(const uint8_t* memory, const ExpectedRun* runs, uint64_t num_runs, uint64_t seed,
                       unsigned long long* wrong, cudaStream_t stream) {
  CountWrongKernel<<<kBlocks, kThreads, 0, stream>>>(memory, runs, num_runs, seed, wrong);
  return cudaPeekAtLastError();
}

cudaError_t CountPoison(const uint8_t* memory, uint64_t bytes, uint8_t poison, unsigned long long* count,
                        cudaStream_t stream) {
  CountPoisonKernel<<<kBlocks, kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(memory), bytes / 16,
                                                      0x01010101u * poison, count);
  return cudaPeekAtLastError();
}

cudaError_t WatchTransfers(const Watch& watch, cudaStream_t stream) {
  WatchKernel<<<1, kWatchThreads, 0, stream>>>(watch);
  return cudaPeekAtLastError();
}

}  // namespace tandem
