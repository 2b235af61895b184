#include "router/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"

namespace tandem {

absl::Status Admission::Admit(int count, absl::Time now) {
  if (active_ + count <= max_active_) {
    active_ += count;
    return absl::OkStatus();
  }
  absl::Duration since_release = last_release_ == absl::InfinitePast() ? absl::ZeroDuration() : now - last_release_;
  absl::Duration hint = std::clamp(mean_gap_ * count - since_release, absl::Milliseconds(10), absl::Seconds(30));
  return MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                   absl::StrCat("the router is full: ", active_, " of ", max_active_, " requests are active"), hint);
}

void Admission::Release(absl::Time now) {
  --active_;
  if (last_release_ != absl::InfinitePast()) mean_gap_ = 0.9 * mean_gap_ + 0.1 * (now - last_release_);
  last_release_ = now;
}

}  // namespace tandem
