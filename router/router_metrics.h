#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "router/cluster_view.h"
#include "router/request.h"
#include "router/vllm_metrics.h"

namespace tandem {

// The metrics of a router; docs/metrics.md lists them.
//
// Thread-safety: the router's owner thread; scraping from any.
class RouterMetrics {
 public:
  // `model`: the name under which it is served.
  RouterMetrics(MetricsServer& server, const std::string& model);
  // A call that was not submitted.
  void CountRequest(const absl::Status& outcome);
  // Called for each update, before it goes to the client.
  void ObserveUpdate(const SampleUpdate& update);
  void ObserveEnd(const RequestUsage& usage, const absl::Status& outcome);
  // All samples of a call have ended.
  void ObserveCall(const Request& request, const RequestUsage& usage, const absl::Status& outcome);
  void CountWorkerLost(const std::string& worker);
  // `active` samples are inside the router, of which `waiting` wait for workers.
  void SetState(const ClusterView& view, int64_t active, int64_t waiting);

 private:
  MetricsServer& server_;
  prometheus::Histogram& ttft_;
  prometheus::Histogram& itl_;
  prometheus::Histogram &queue_, &prefill_, &transfer_, &handover_, &decode_;
  prometheus::Counter &prompt_tokens_, &output_tokens_, &cached_tokens_, &retries_;
  prometheus::Gauge& active_;
  VllmMetrics vllm_;
};

}  // namespace tandem
