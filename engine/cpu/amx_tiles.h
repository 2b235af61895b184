#pragma once

// The quantised matrix product on AMX tiles: 16 rows of activations times one panel. Included by linear_kernels.cc in
// the build for processors with AMX. A panel's codes lie as a tile of B wants them (packed_matrix.h), so that only
// 4-bit ones are unpacked first. Integer sums are exact, and the float operations after them are the same in the same
// order as those of the AVX-512 kernels: results are equal to theirs bit for bit, and rows that fill no tile go there.

#include <immintrin.h>

#include <cstring>

#include "engine/cpu/packed_matrix.h"
#include "engine/cpu/vector_math.h"

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {
namespace {

constexpr int kAmxRows = 16;

// Numbers of the tiles; the compiler's intrinsics want literals.
#define TANDEM_TILE_SUMS 0      // [16 rows][16 outputs] int32
#define TANDEM_TILE_IN_32 1     // [16 rows][32 columns] int8
#define TANDEM_TILE_CODES_32 2  // [8 quads][16 outputs][4 columns] uint8
#define TANDEM_TILE_IN_16 3     // [16 rows][16 columns] int8
#define TANDEM_TILE_CODES_16 4  // [4 quads][16 outputs][4 columns] uint8

// Shapes the tiles, once a thread: nothing else in the process uses them.
inline void ConfigureTiles() {
  thread_local bool configured = false;
  if (configured) return;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 32, 64, 16, 64};
    uint8_t rows[16] = {16, 16, 8, 16, 4};
  } config;
  // GCC 12 believes that _tile_loadconfig reads 8 of the 64 bytes, and drops the stores to the others.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
  configured = true;
}

// Loads a group's codes, [group / 4][16 outputs][4 columns], for the GroupSums that follow.
template <int kGroup>
TANDEM_INLINE void LoadCodesTile(const uint8_t* codes) {
  // As above: the compiler does not see what the load reads.
  asm volatile("" ::"r"(codes) : "memory");
  if constexpr (kGroup == 32) {
    _tile_loadd(TANDEM_TILE_CODES_32, codes, 64);
  } else {
    _tile_loadd(TANDEM_TILE_CODES_16, codes, 64);
  }
}

// sums[row][output] = dot of a group of the row's activations and of the output's codes.
template <int kGroup>
TANDEM_INLINE void GroupSums(const int8_t* in, int64_t in_stride, int32_t (&sums)[kAmxRows][kPanelRows]) {
  _tile_zero(TANDEM_TILE_SUMS);
  if constexpr (kGroup == 32) {
    _tile_loadd(TANDEM_TILE_IN_32, in, in_stride);
    _tile_dpbsud(TANDEM_TILE_SUMS, TANDEM_TILE_IN_32, TANDEM_TILE_CODES_32);
  } else {
    _tile_loadd(TANDEM_TILE_IN_16, in, in_stride);
    _tile_dpbsud(TANDEM_TILE_SUMS, TANDEM_TILE_IN_16, TANDEM_TILE_CODES_16);
  }
  _tile_stored(TANDEM_TILE_SUMS, sums, sizeof(sums[0]));
  // Nor what the store writes.
  asm volatile("" ::"r"(&sums) : "memory");
}

}  // namespace
}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
