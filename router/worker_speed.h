#pragma once

#include <optional>

#include "absl/time/time.h"

namespace tandem {

// How fast a worker computes, from when its tokens reached this router. Pure: time is passed in.
//
// Thread-safety: not thread-safe; part of the cluster view.
class WorkerSpeed {
 public:
  // A first token came, of a prompt of which the worker computed `tokens`; it was sent at `started`. Prompts are taken
  // to be computed one after the other, so a worker's rate counts what it does with a full queue. Prompts of less than
  // 256 tokens are left out: what they take is mostly not computing.
  void OnFirstToken(double tokens, absl::Time started, absl::Time now);
  // `batch` running requests got a token; `running` go on.
  void OnDecodeStep(int batch, int running, absl::Time now);

  // Not set before there was something to measure.
  std::optional<double> prefill_tokens_per_second() const;
  // The time that a token takes with `batch` requests running. A step's time grows slowly with its batch, since it
  // reads the weights for all at once: it is taken to be proportional to the batch plus a constant.
  std::optional<absl::Duration> TimePerToken(int batch) const;

 private:
  // Of prompts, the newer the heavier.
  double prefilled_tokens_ = 0, prefill_seconds_ = 0;
  absl::Time last_first_token_ = absl::InfinitePast();
  double seconds_per_share_ = 0;  // A step's time over (batch + constant); moving average.
  absl::Time last_step_ = absl::InfinitePast();
  int running_ = 0;  // After the last step.
};

}  // namespace tandem
