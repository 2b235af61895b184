#pragma once

#include "absl/strings/string_view.h"

namespace tandem {

// The page at /: the cluster's state and a box to ask the model. It needs nothing but this server.
absl::string_view PageHtml();

}  // namespace tandem
