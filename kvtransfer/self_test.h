#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"

namespace tandem {

// The link self-test of docs/kv_protocol.md, section 1: prefill writes two patterns into the test
// area that follows each exported pool, decode checks them.
inline constexpr uint64_t kLargeTestBytes = 16u << 20;
inline constexpr uint64_t kSmallTestBytes = 4u << 10;
inline constexpr uint64_t kTestAreaBytes = kLargeTestBytes + kSmallTestBytes;

struct SelfTestResult {
  uint64_t large_seed = 0, small_seed = 0;
  double gigabytes_per_second = 0;  // Of the large write and its flush; the best of several.
  double latency_us = 0;            // Of the small write and its flush; the best of several.
};

// Writes both patterns, from memory of the kind of this side's pool, at `test_area`, an offset in the peer's.
// DEADLINE_EXCEEDED after half a second; other errors are the transport's. An error of a write closes the pool, which
// may still read the patterns' memory.
absl::StatusOr<SelfTestResult> WriteSelfTest(Transport& transport, PoolMemory& memory,
                                             std::unique_ptr<RemotePool>& pool, uint64_t test_area);

// Whether the area, in a pool of such memory, holds the patterns of these seeds.
absl::StatusOr<bool> VerifySelfTest(PoolMemory& memory, const uint8_t* test_area, uint64_t large_seed,
                                    uint64_t small_seed);

}  // namespace tandem
