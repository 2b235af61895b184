#pragma once

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/load_plan.h"
#include "common/clock.h"

namespace tandem {

// What is under load.
//
// Thread-safety: thread-safe.
class LoadTarget {
 public:
  virtual ~LoadTarget() = default;
  // Generates exactly `output_tokens`; calls `on_tokens` with the number of tokens of each piece, on this thread.
  virtual absl::Status Generate(const std::vector<TokenId>& prompt, int output_tokens,
                                const std::function<void(int tokens)>& on_tokens) = 0;
};

// How one request went. Times count from the load's beginning.
struct RequestRecord {
  // When it should have been sent. All latencies count from here, so that a client that falls behind does not hide what
  // its users would wait (coordinated omission).
  absl::Duration due;
  absl::Duration sent, first_token, last_token;
  std::vector<absl::Duration> gaps;  // Between tokens; those that came in one piece have 0 between them.
  int prompt_tokens = 0, output_tokens = 0;
  absl::Status status;
};

struct LoadProgress {
  int sent = 0, ended = 0, failed = 0;
};

// Carries a plan out against `target`, and returns when all has ended: the records in the plan's order. Open loops have
// a thread for each request under way, closed ones `concurrency` threads. `wait_until` returns at that time of `clock`,
// or later; `on_progress` is called when a request was sent or has ended, one call at a time.
std::vector<RequestRecord> RunLoad(const LoadPlan& plan, const LoadOptions& options, LoadTarget& target,
                                   const Clock& clock, const std::function<void(absl::Time)>& wait_until,
                                   const std::function<void(const LoadProgress&)>& on_progress);

}  // namespace tandem
