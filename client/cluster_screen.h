#pragma once

#include <string>

#include "client/router_client.h"

namespace tandem {

// A cluster's state as a screen of text: a head line, a line for each worker with its queue, the share of its pages in
// use as a bar, and its measured speed, and a line for each link. Lines are cut at `width` columns; `colours`: with the
// terminal's escapes for what is wrong.
std::string DrawCluster(const std::string& router, const ClusterSummary& cluster, int width, bool colours);

}  // namespace tandem
