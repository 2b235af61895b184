#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "router/cluster_view.h"

namespace tandem {

// Workers, links and load as JSON, for the page at /.
std::string ClusterJson(const ClusterView& view, absl::string_view model, int64_t active_requests, bool ready);

}  // namespace tandem
