#include "kvtransfer/self_test.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

// Of the whole test: the other links of the thread wait meanwhile, and are lost after a second.
constexpr absl::Duration kTestTimeout = absl::Milliseconds(500);
constexpr int kRateRounds = 3, kLatencyRounds = 5;

uint64_t PatternWord(uint64_t seed, uint64_t index) {
  uint64_t z = seed + index * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 31)) * 0xBF58476D1CE4E5B9ull;
  return z ^ (z >> 29);
}

void FillPattern(uint64_t seed, absl::Span<uint8_t> out) {
  for (size_t i = 0; i < out.size() / 8; ++i) {
    uint64_t word = PatternWord(seed, i);
    std::memcpy(out.data() + 8 * i, &word, 8);
  }
}

bool HasPattern(uint64_t seed, absl::Span<const uint8_t> bytes) {
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + 8 * i, 8);
    if (word != PatternWord(seed, i)) return false;
  }
  return true;
}

absl::StatusOr<absl::Duration> TimedWrite(Transport& transport, RemotePool& pool, const uint8_t* source,
                                          const CopyRun& run, absl::Time deadline) {
  const Clock& clock = Clock::Real();
  absl::Time begin = clock.Now();
  RETURN_IF_ERROR(pool.Write({.source_base = source, .runs = {run}}));
  while (true) {
    transport.Progress();
    ASSIGN_OR_RETURN(bool done, pool.PollFlushed());
    const absl::Time now = clock.Now();
    if (done) return now - begin;
    if (now > deadline) return absl::DeadlineExceededError("self-test write did not finish in time");
  }
}

// Writes the patterns, which lie at `source`, and times it.
absl::StatusOr<SelfTestResult> TimeWrites(Transport& transport, RemotePool& pool, const uint8_t* source, int64_t area) {
  const absl::Time deadline = Clock::Real().Now() + kTestTimeout;
  // The best of several: the first write of a link also pays for what is set up on the way. A slow link has time for
  // one.
  auto best_of = [&](int rounds, const CopyRun& run) -> absl::StatusOr<absl::Duration> {
    absl::Duration best = absl::InfiniteDuration();
    for (int i = 0; i < rounds; ++i) {
      if (i > 0 && Clock::Real().Now() + 2 * best > deadline) break;
      ASSIGN_OR_RETURN(const absl::Duration time, TimedWrite(transport, pool, source, run, deadline));
      best = std::min(best, time);
    }
    return best;
  };
  constexpr auto kLarge = static_cast<int64_t>(kLargeTestBytes), kSmall = static_cast<int64_t>(kSmallTestBytes);
  ASSIGN_OR_RETURN(const absl::Duration large, best_of(kRateRounds, {0, area, kLarge}));
  ASSIGN_OR_RETURN(const absl::Duration small, best_of(kLatencyRounds, {kLarge, area + kLarge, kSmall}));
  return SelfTestResult{.gigabytes_per_second = static_cast<double>(kLargeTestBytes) / absl::ToDoubleNanoseconds(large),
                        .latency_us = absl::ToDoubleMicroseconds(small)};
}

}  // namespace

absl::StatusOr<SelfTestResult> WriteSelfTest(Transport& transport, PoolMemory& memory,
                                             std::unique_ptr<RemotePool>& pool, uint64_t test_area) {
  const uint64_t large_seed = DrawRandomId(), small_seed = DrawRandomId();
  std::vector<uint8_t> patterns(kTestAreaBytes);
  FillPattern(large_seed, absl::MakeSpan(patterns).subspan(0, kLargeTestBytes));
  FillPattern(small_seed, absl::MakeSpan(patterns).subspan(kLargeTestBytes));
  ASSIGN_OR_RETURN(const std::unique_ptr<PoolBuffer> source, memory.MakeCopy(patterns));
  absl::StatusOr<SelfTestResult> result = TimeWrites(transport, *pool, source->base(), static_cast<int64_t>(test_area));
  if (!result.ok()) {
    pool.reset();  // It may still read the source, which goes after it.
    return result;
  }
  result->large_seed = large_seed;
  result->small_seed = small_seed;
  return result;
}

absl::StatusOr<bool> VerifySelfTest(PoolMemory& memory, const uint8_t* test_area, uint64_t large_seed,
                                    uint64_t small_seed) {
  std::vector<uint8_t> bytes(kTestAreaBytes);
  RETURN_IF_ERROR(memory.Read(test_area, absl::MakeSpan(bytes)));
  const absl::Span<const uint8_t> area = bytes;
  return HasPattern(large_seed, area.subspan(0, kLargeTestBytes)) &&
         HasPattern(small_seed, area.subspan(kLargeTestBytes));
}

}  // namespace tandem
