#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// Kernels that read and write other ranks' memory. All ranks launch each, in the same order and with the same sizes; a
// block waits for the blocks of its number on the other ranks, so all ranks' kernels must be able to run at once.

constexpr int kMaxRanks = 8;
constexpr int kMaxRankBlocks = 128;

// A piece of memory of every rank, as this rank's device sees them.
struct RankPointers {
  void* of_rank[kMaxRanks] = {};
  int rank = 0, size = 1;
};

// By which ranks tell each other how far they are: the pieces are [kMaxRankBlocks][kMaxRanks] uint32, of which a rank's
// block and another rank's have one that only that other writes.
struct RankSignals {
  RankPointers flags;
  uint32_t* rounds = nullptr;  // [kMaxRankBlocks] of this rank: how often a block has signalled.
};

// out += the sum of all ranks' summands, in order of ranks; a multiple of 8 elements. The summands may be written again
// when another of these kernels has run in between.
cudaError_t LaunchAddRanks(const RankSignals& signals, const RankPointers& summands, int64_t elements,
                           __nv_bfloat16* out, cudaStream_t stream);
// out += summand, which no other rank sees.
cudaError_t LaunchAdd(const __nv_bfloat16* summand, int64_t elements, __nv_bfloat16* out, cudaStream_t stream);
// Rank 0: out[rows][size * columns] = the ranks' parts [rows][columns], side by side.
cudaError_t LaunchJoinRanks(const RankSignals& signals, const RankPointers& parts, int rows, int columns, float* out,
                            cudaStream_t stream);
// copies[i] of the other ranks = tokens[i] of rank 0.
cudaError_t LaunchShareTokens(const RankSignals& signals, const RankPointers& copies, const int32_t* tokens, int rows,
                              cudaStream_t stream);

}  // namespace tandem
