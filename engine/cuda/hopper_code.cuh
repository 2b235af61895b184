#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

#include "engine/cuda/device_code.cuh"
#include "engine/cuda/tensor_map.h"

// What the kernels share in which groups of four warps multiply (wgmma) what the copy engine brings (TMA) to a ring in
// shared memory.

namespace tandem {

using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kGroupThreads = 128;  // Four warps that multiply together.
constexpr int kAtom = kMapColumns;  // Columns that lie side by side in shared memory.
constexpr int kAtomBytes = kAtom * 2;
constexpr int kRingAlignment = 1024;  // Of what is copied, as the order of its 16 bytes repeats.
constexpr uint64_t kNormalHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

__device__ __forceinline__ uint8_t* AlignedRing(uint8_t* shared) {
  return shared + (kRingAlignment - SharedAddress(shared) % kRingAlignment) % kRingAlignment;
}

// A place of a ring, and how often it went round.
template <int kStages>
struct RingPlace {
  int stage = 0, turn = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) stage = 0, ++turn;
  }
  __device__ __forceinline__ void WaitFull(uint64_t* full) const { Barrier::wait(&full[stage], turn & 1); }
  __device__ __forceinline__ void WaitEmpty(uint64_t* empty) const {
    if (turn > 0) Barrier::wait(&empty[stage], (turn - 1) & 1);
  }
};

// A matrix of rows of kAtomBytes, as the copies leave it (128-byte swizzle), for the instruction.
__device__ __forceinline__ uint64_t MatrixAt(uint32_t shared) {
  constexpr uint64_t kEightRows = 8 * kAtomBytes / 16, kSwizzle128 = 1;
  return (shared & 0x3ffff) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// Where thread `thread` of a group stores its row of 16 columns from `column` on, as StoreMatrices takes them, in
// memory that the copy engine writes from: 64 rows of kAtomBytes for each kAtom columns, which begin kBytes apart.
template <int kBytes>
__device__ __forceinline__ uint32_t StagedAt(uint32_t staged, int thread, int column) {
  const int row = thread / 32 * 16 + thread % 16, piece = column % kAtom / 8 + thread % 32 / 16;
  return staged + column / kAtom * kBytes + row * kAtomBytes + (piece ^ row % 8) * 16;
}

// Of a group, counted from 0; barriers 1, 2 ...
__device__ __forceinline__ void SyncGroup(int group) { SyncNamed(1 + group, kGroupThreads); }

// Keeps the compiler from moving registers around what multiplies them.
template <typename T, size_t kCount>
__device__ __forceinline__ void FenceOperands(T (&values)[kCount]) {
#pragma unroll
  for (T& value : values) cute::warpgroup_fence_operand(value);
}

}  // namespace tandem
