#include "engine/cuda/rank_kernels.h"

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/launch.h"

namespace tandem {
namespace {

constexpr int kThreads = 256;
constexpr int kPerLoad = 8;  // Elements of 16 bytes.

__device__ __forceinline__ void Signal(uint32_t* flag, uint32_t round) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(round) : "memory");
}
__device__ __forceinline__ uint32_t ReadSignal(const uint32_t* flag) {
  uint32_t round;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(round) : "l"(flag) : "memory");
  return round;
}

// Tells the ranks [first_told, end_told) that this rank's block is here, and waits for those of [first, end). What
// ranks wrote before is seen after.
__device__ __forceinline__ void MeetRanks(const RankSignals& signals, int first_told, int end_told, int first,
                                          int end) {
  const int own = signals.flags.rank, other = static_cast<int>(threadIdx.x);
  const uint32_t round = signals.rounds[blockIdx.x] + 1;
  __syncthreads();  // All have read the round.
  if (other == 0) signals.rounds[blockIdx.x] = round;
  if (other != own && other < signals.flags.size) {
    if (other >= first_told && other < end_told) {
      Signal(static_cast<uint32_t*>(signals.flags.of_rank[other]) + blockIdx.x * kMaxRanks + own, round);
    }
    if (other >= first && other < end) {
      const uint32_t* flag = static_cast<uint32_t*>(signals.flags.of_rank[own]) + blockIdx.x * kMaxRanks + other;
      while (static_cast<int32_t>(ReadSignal(flag) - round) < 0) continue;
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void AddTo(float (&sum)[kPerLoad], const uint4& value) {
  const uint32_t pairs[] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackPair(pairs[i]);
    sum[2 * i] += pair.x;
    sum[2 * i + 1] += pair.y;
  }
}

__device__ __forceinline__ uint4 Pack(const float (&sum)[kPerLoad]) {
  return make_uint4(PackPair(sum[0], sum[1]), PackPair(sum[2], sum[3]), PackPair(sum[4], sum[5]),
                    PackPair(sum[6], sum[7]));
}

__global__ void __launch_bounds__(kThreads)
    AddRanksKernel(RankSignals signals, RankPointers summands, int64_t loads, uint4* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  MeetRanks(signals, 0, signals.flags.size, 0, signals.flags.size);
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < loads; i += int64_t{gridDim.x} * kThreads) {
    uint4 values[kMaxRanks];
#pragma unroll
    for (int rank = 0; rank < kMaxRanks; ++rank) {  // All at once: another GPU's memory is a microsecond away.
      if (rank < summands.size) values[rank] = __ldcg(static_cast<const uint4*>(summands.of_rank[rank]) + i);
    }
    float sum[kPerLoad] = {};
#pragma unroll
    for (int rank = 0; rank < kMaxRanks; ++rank) {
      if (rank < summands.size) AddTo(sum, values[rank]);
    }
    AddTo(sum, out[i]);
    out[i] = Pack(sum);
  }
}

__global__ void __launch_bounds__(kThreads) AddKernel(const uint4* summand, int64_t loads, uint4* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < loads; i += int64_t{gridDim.x} * kThreads) {
    float sum[kPerLoad] = {};
    AddTo(sum, summand[i]);
    AddTo(sum, out[i]);
    out[i] = Pack(sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    JoinRanksKernel(RankSignals signals, RankPointers parts, int64_t rows, int64_t columns, T* out) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int size = signals.flags.size;
  MeetRanks(signals, 0, 1, signals.flags.rank == 0 ? 1 : size, size);
  if (signals.flags.rank != 0) return;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < rows * size * columns;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / (size * columns), column = i % (size * columns);
    const T* part = static_cast<const T*>(parts.of_rank[column / columns]);
    out[i] = __ldcg(part + row * columns + column % columns);
  }
}

__global__ void __launch_bounds__(kThreads)
    ShareTokensKernel(RankSignals signals, RankPointers copies, const int32_t* tokens, int rows) {
  LetNextKernelBegin();
  WaitForEarlierKernels();
  const int size = signals.flags.size;
  if (signals.flags.rank == 0) {
    for (int other = 1; other < size; ++other) {
      for (int i = threadIdx.x; i < rows; i += kThreads) static_cast<int32_t*>(copies.of_rank[other])[i] = tokens[i];
    }
    __threadfence_system();
    __syncthreads();
    MeetRanks(signals, 1, size, size, size);
  } else {
    MeetRanks(signals, size, size, 0, 1);
  }
}

int BlocksFor(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < kMaxRankBlocks ? blocks : kMaxRankBlocks);
}

}  // namespace

cudaError_t LaunchAddRanks(const RankSignals& signals, const RankPointers& summands, int64_t elements,
                           __nv_bfloat16* out, cudaStream_t stream) {
  const int64_t loads = elements / kPerLoad;
  return LaunchEarly(AddRanksKernel, BlocksFor(loads), kThreads, 0, stream, signals, summands, loads,
                     reinterpret_cast<uint4*>(out));
}

cudaError_t LaunchAdd(const __nv_bfloat16* summand, int64_t elements, __nv_bfloat16* out, cudaStream_t stream) {
  const int64_t loads = elements / kPerLoad, blocks = (loads + kThreads - 1) / kThreads;
  return LaunchEarly(AddKernel, static_cast<int>(blocks < 132 * 16 ? blocks : 132 * 16), kThreads, 0, stream,
                     reinterpret_cast<const uint4*>(summand), loads, reinterpret_cast<uint4*>(out));
}

cudaError_t LaunchJoinRanks(const RankSignals& signals, const RankPointers& parts, int rows, int columns, float* out,
                            cudaStream_t stream) {
  const int64_t items = int64_t{rows} * columns * signals.flags.size;
  if (columns % 4 != 0) {
    return LaunchEarly(JoinRanksKernel<float>, BlocksFor(items), kThreads, 0, stream, signals, parts, int64_t{rows},
                       int64_t{columns}, out);
  }
  return LaunchEarly(JoinRanksKernel<float4>, BlocksFor(items / 4), kThreads, 0, stream, signals, parts, int64_t{rows},
                     int64_t{columns / 4}, reinterpret_cast<float4*>(out));
}

cudaError_t LaunchShareTokens(const RankSignals& signals, const RankPointers& copies, const int32_t* tokens, int rows,
                              cudaStream_t stream) {
  return LaunchEarly(ShareTokensKernel, 1, kThreads, 0, stream, signals, copies, tokens, rows);
}

}  // namespace tandem
