#include "router/worker_speed.h"

#include <algorithm>
#include <cmath>

namespace tandem {
namespace {

constexpr double kHalfLifeTokens = 8192;  // After so many newer tokens a prompt counts half.
constexpr double kLeastTokens = 256;
constexpr double kBatchConstant = 32;
constexpr double kNewShare = 0.1;
// A longer silence is a pause, not a step.
constexpr absl::Duration kLongestStep = absl::Seconds(2);

}  // namespace

void WorkerSpeed::OnFirstToken(double tokens, absl::Time started, absl::Time now) {
  const double seconds = absl::ToDoubleSeconds(now - std::max(started, last_first_token_));
  last_first_token_ = now;
  if (tokens < kLeastTokens) return;
  const double keep = std::exp2(-tokens / kHalfLifeTokens);
  prefilled_tokens_ = keep * prefilled_tokens_ + tokens;
  prefill_seconds_ = keep * prefill_seconds_ + std::max(0.0, seconds);
}

void WorkerSpeed::OnDecodeStep(int batch, int running, absl::Time now) {
  const absl::Duration step = now - last_step_;
  if (running_ > 0 && batch > 0 && step < kLongestStep) {
    const double share = absl::ToDoubleSeconds(step) / (batch + kBatchConstant);
    seconds_per_share_ = seconds_per_share_ == 0 ? share : (1 - kNewShare) * seconds_per_share_ + kNewShare * share;
  }
  last_step_ = now;
  running_ = running;
}

std::optional<double> WorkerSpeed::prefill_tokens_per_second() const {
  if (prefill_seconds_ <= 0) return std::nullopt;
  return prefilled_tokens_ / prefill_seconds_;
}

std::optional<absl::Duration> WorkerSpeed::TimePerToken(int batch) const {
  if (seconds_per_share_ <= 0) return std::nullopt;
  return absl::Seconds(seconds_per_share_ * (batch + kBatchConstant));
}

}  // namespace tandem
