#include "router/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"

namespace tandem {

namespace {

constexpr double kLent = 0.8;  // Of all places: so many may be taken by whoever comes.

absl::Status Refused(absl::string_view why, absl::Duration retry_after) {
  return MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull, why,
                   std::clamp(retry_after, absl::Milliseconds(10), absl::Seconds(30)));
}

}  // namespace

Admission::Admission(int64_t max_active, const std::vector<ApiKeySettings>& tenants) : max_active_(max_active) {
  double weights = 0;
  for (const ApiKeySettings& tenant : tenants) weights += tenant.weight;
  for (const ApiKeySettings& tenant : tenants) {
    const double places = static_cast<double>(max_active) * tenant.weight / weights;
    shares_.push_back({.name = tenant.name,
                       .limit = tenant.max_active_requests > 0 ? tenant.max_active_requests : max_active,
                       .places = std::max<int64_t>(1, static_cast<int64_t>(places))});
  }
}

absl::Duration Admission::RetryAfter(int count, absl::Time now) const {
  const absl::Duration since_release =
      last_release_ == absl::InfinitePast() ? absl::ZeroDuration() : now - last_release_;
  return absl::Nanoseconds(mean_gap_ns_.load(std::memory_order_relaxed)) * count - since_release;
}

absl::Status Admission::Refuse(absl::string_view why, int count, absl::Time now) const {
  return Refused(why, RetryAfter(count, now));
}

absl::Status Admission::RefuseAsFull(absl::Duration retry_after) const {
  return Refused(absl::StrCat("the router is full: ", active_.load(), " of ", max_active_, " requests are active"),
                 retry_after);
}

absl::Status Admission::CheckRoom() const {
  if (active_.load(std::memory_order_relaxed) < max_active_) return absl::OkStatus();
  return RefuseAsFull(absl::Nanoseconds(mean_gap_ns_.load(std::memory_order_relaxed)));
}

absl::Status Admission::Admit(Tenant tenant, int count, absl::Time now) {
  if (active_ + count > max_active_) return RefuseAsFull(RetryAfter(count, now));
  if (tenant != kAnyone) {
    Share& share = shares_[tenant];
    if (count > share.limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("n: ", share.name, " may have ", share.limit, " requests active, and this one is ", count));
    }
    if (share.active + count > share.limit) {
      return Refuse(absl::StrCat(share.name, " has ", share.active, " of ", share.limit, " requests active"), count,
                    now);
    }
    const bool is_crowded = active_ + count > static_cast<int64_t>(kLent * static_cast<double>(max_active_));
    if (is_crowded && share.active + count > share.places) {
      return Refuse(absl::StrCat("the router is almost full, and ", share.name, " has ", share.active,
                                 " requests active, its share is ", share.places),
                    count, now);
    }
    share.active += count;
  }
  active_ += count;
  return absl::OkStatus();
}

void Admission::Release(Tenant tenant, absl::Time now) {
  --active_;
  if (tenant != kAnyone) --shares_[tenant].active;
  if (last_release_ != absl::InfinitePast()) {
    const double gap = absl::ToDoubleNanoseconds(now - last_release_);
    mean_gap_ns_ = static_cast<int64_t>(0.9 * static_cast<double>(mean_gap_ns_.load()) + 0.1 * gap);
  }
  last_release_ = now;
}

}  // namespace tandem
