#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "router/cluster_view.h"
#include "router/request.h"

namespace tandem {

// The metrics of a router; docs/metrics.md lists them.
//
// Thread-safety: the router's owner thread; scraping from any.
class RouterMetrics {
 public:
  explicit RouterMetrics(MetricsServer& server);
  void CountRequest(const absl::Status& outcome);
  // Called for each update, before it goes to the client.
  void ObserveUpdate(const SampleUpdate& update);
  void ObserveEnd(const RequestUsage& usage, const absl::Status& outcome);
  void CountWorkerLost(const std::string& worker);
  void SetState(const ClusterView& view, int64_t active);

 private:
  MetricsServer& server_;
  prometheus::Histogram& ttft_;
  prometheus::Histogram& itl_;
  prometheus::Histogram &queue_, &prefill_, &transfer_, &handover_, &decode_;
  prometheus::Counter &prompt_tokens_, &output_tokens_, &cached_tokens_, &retries_;
  prometheus::Gauge& active_;
};

}  // namespace tandem
