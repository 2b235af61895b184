#pragma once

#include <cstdint>

// Free of other headers, since CUDA compiles it.

#ifdef __CUDACC__
#define TANDEM_HOST_DEVICE __host__ __device__
#else
#define TANDEM_HOST_DEVICE
#endif

namespace tandem {

// What one 8-byte word adds to the sum of a page: XXH3's accumulation, a product of the halves of the word and a key
// and the word itself, with a key that comes from where the word lies. Sums of words may so be added in any order, as
// many threads do, and a word that lies elsewhere adds something else.
//
// `index`: the word's offset in the destination pool, in words.
TANDEM_HOST_DEVICE inline uint64_t SumOfWord(uint64_t word, uint64_t index) {
  const uint64_t mixed = word ^ (index * 0x9E3779B97F4A7C15ull + 0xC2B2AE3D27D4EB4Full);
  return word + (mixed & 0xFFFFFFFFull) * (mixed >> 32);
}

}  // namespace tandem
