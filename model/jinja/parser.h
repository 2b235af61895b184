#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/ast.h"

namespace tandem::jinja {

// INVALID_ARGUMENT names the line and what was expected. Nesting is bounded.
absl::StatusOr<Block> Parse(absl::string_view source);

}  // namespace tandem::jinja
