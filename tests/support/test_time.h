#pragma once

#include "absl/time/time.h"

namespace tandem {

// The time at which tests begin that hand in the time.
inline constexpr absl::Time kNow = absl::UnixEpoch();

}  // namespace tandem
