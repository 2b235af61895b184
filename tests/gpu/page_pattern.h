#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// Content whose every 16-byte vector tells where it comes from: vector `index` of a pool filled with `seed`.

// Fills `bytes` (a multiple of 16) of device memory from `first_vector` of the pattern on.
cudaError_t FillPattern(uint8_t* memory, uint64_t bytes, uint64_t seed, uint64_t first_vector, cudaStream_t stream);

// A run that should have arrived, or, with `expects_poison`, a stretch that nobody may have written.
struct ExpectedRun {
  uint64_t source = 0, destination = 0, bytes = 0;
};
// Adds to `*wrong` (device or mapped memory) the vectors of `memory` that do not hold what pool `seed` has at the run's
// source.
cudaError_t CountWrong(const uint8_t* memory, const ExpectedRun* runs, uint64_t num_runs, uint64_t seed,
                       unsigned long long* wrong, cudaStream_t stream);
// Adds the vectors of `memory` whose every byte is `poison`.
cudaError_t CountPoison(const uint8_t* memory, uint64_t bytes, uint8_t poison, unsigned long long* count,
                        cudaStream_t stream);

// One transfer of the visibility test.
inline constexpr uint32_t kMaxWatchedRuns = 256;
struct WatchedTransfer {
  uint64_t seed;
  uint32_t num_runs;
  ExpectedRun runs[kMaxWatchedRuns];
};
struct Watch {
  const uint8_t* memory = nullptr;                     // The destination.
  const uint32_t* flag = nullptr;                      // Counts transfers up; in the destination's memory.
  const volatile WatchedTransfer* expected = nullptr;  // Mapped host memory: the one transfer that is under way.
  const volatile uint32_t* announced = nullptr;        // Mapped host memory: its number, once `expected` is written.
  volatile uint32_t* ready = nullptr;                  // Mapped host memory: its number, once its flag is awaited.
  uint32_t last = 0;                                   // Flag values are 1 to last.
  uint64_t patience_ns = 0;                            // For each flag.
  volatile uint32_t* seen = nullptr;                   // Mapped host memory: the last transfer that was checked.
  unsigned long long* wrong = nullptr;                 // Mapped host memory: wrong vectors of all.
  unsigned long long* fresh = nullptr;  // Mapped host memory: transfers whose flag was awaited before it came.
  uint32_t* gave_up = nullptr;          // Mapped host memory: the flag that never came.
};
// One block that waits for each flag in turn and reads that transfer's bytes in the moment in which it sees it, what
// was written last first.
cudaError_t WatchTransfers(const Watch& watch, cudaStream_t stream);

}  // namespace tandem
