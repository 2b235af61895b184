#include "common/units.h"

#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tandem {
namespace {

constexpr std::array<std::pair<absl::string_view, int64_t>, 5> kByteUnits = {{
    {"TiB", int64_t{1} << 40},
    {"GiB", int64_t{1} << 30},
    {"MiB", int64_t{1} << 20},
    {"KiB", int64_t{1} << 10},
    {"B", 1},
}};

constexpr std::array<std::pair<absl::string_view, int64_t>, 3> kRateUnits = {{
    {"GB/s", 1'000'000'000},
    {"MB/s", 1'000'000},
    {"KB/s", 1'000},
}};

// A number that is not negative and a unit, in the unit's base; nothing for anything else.
template <size_t kUnits>
std::optional<double> ParseAmount(absl::string_view text,
                                  const std::array<std::pair<absl::string_view, int64_t>, kUnits>& units) {
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  for (const auto& [unit, factor] : units) {
    if (!absl::EndsWith(trimmed, unit)) continue;
    double amount = 0;
    const absl::string_view number = absl::StripAsciiWhitespace(trimmed.substr(0, trimmed.size() - unit.size()));
    if (!absl::SimpleAtod(number, &amount)) break;
    amount *= static_cast<double>(factor);
    if (!(amount >= 0) || amount > 9e18) break;
    return amount;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  if (std::optional<double> bytes = ParseAmount(text, kByteUnits)) return static_cast<int64_t>(std::llround(*bytes));
  return absl::InvalidArgumentError(
      absl::StrCat("expected a size such as \"512 MiB\" (units B, KiB, MiB, GiB, TiB), got \"", text, "\""));
}

absl::StatusOr<double> ParseRate(absl::string_view text) {
  if (std::optional<double> rate = ParseAmount(text, kRateUnits)) return *rate;
  return absl::InvalidArgumentError(
      absl::StrCat("expected a rate such as \"12 GB/s\" (units KB/s, MB/s, GB/s), got \"", text, "\""));
}

absl::StatusOr<absl::Duration> ParseDurationSetting(absl::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(absl::StripAsciiWhitespace(text), &duration) || duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a duration such as \"250ms\" or \"2s\", got \"", text, "\""));
  }
  return duration;
}

std::string FormatBytes(int64_t bytes) {
  for (const auto& [unit, factor] : kByteUnits) {
    if (bytes >= factor && factor > 1) {
      return absl::StrFormat("%.4g %s", static_cast<double>(bytes) / static_cast<double>(factor), unit);
    }
  }
  return absl::StrCat(bytes, " B");
}

}  // namespace tandem
