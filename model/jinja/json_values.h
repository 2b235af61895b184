#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/value.h"

namespace tandem::jinja {

// A JSON text as a value; objects keep the order of their keys. INVALID_ARGUMENT: it is none, is nested too
// deeply, or is over what limits.h allows.
absl::StatusOr<Value> FromJson(absl::string_view text);

}  // namespace tandem::jinja
