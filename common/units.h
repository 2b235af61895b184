#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace tandem {

// "256 MiB", "2GiB", "64 KiB", "512 B" -> bytes. INVALID_ARGUMENT names the accepted units: a bare
// number is refused, so that nobody means MB and gets bytes.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

// "250ms", "1.5s", "2m" -> duration, not negative. INVALID_ARGUMENT as above.
absl::StatusOr<absl::Duration> ParseDurationSetting(absl::string_view text);

// "12 GB/s", "500 MB/s" -> bytes a second; units are decimal, as those of links are. INVALID_ARGUMENT as above.
absl::StatusOr<double> ParseRate(absl::string_view text);

// 1572864 -> "1.5 MiB".
std::string FormatBytes(int64_t bytes);

}  // namespace tandem
