#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/ids.h"
#include "common/metrics.h"
#include "router/cluster_view.h"
#include "router/request.h"

namespace tandem {

// vLLM's metrics, as far as they have a meaning here: dashboards, autoscalers and load generators read them by name.
// They tell what RouterMetrics tells, and of the cluster as if it were one engine. Not here: what only an engine's
// steps have (iteration_tokens_total, kv_block_*), LoRA adapters, speculative decoding.
//
// Thread-safety: the router's owner thread; scraping from any.
class VllmMetrics {
 public:
  VllmMetrics(MetricsServer& server, const std::string& model);
  void ObserveUpdate(const SampleUpdate& update);
  void ObserveEnd(const RequestUsage& usage);
  void ObserveCall(const Request& request, const RequestUsage& usage);
  void SetState(const ClusterView& view, int64_t active, int64_t waiting);

 private:
  prometheus::Gauge &running_, &waiting_, &cache_usage_;
  prometheus::Counter& preemptions_;
  absl::flat_hash_map<Incarnation, int64_t> preemptions_of_;  // Counted already.
  prometheus::Counter &prompt_tokens_, &generated_tokens_, &cache_queries_, &cache_hits_, &stopped_, &cut_;
  prometheus::Histogram &ttft_, &itl_, &time_per_token_, &e2e_, &queue_, &prefill_, &decode_, &inference_,
      &prompt_length_, &output_length_, &longest_sample_, &samples_, &max_tokens_;
  MetricsServer& server_;
  const std::string model_;
  // cache_config_info of the decode workers that there were, by page size and number of pages.
  std::map<std::pair<int, int>, prometheus::Gauge*> cache_configs_;
};

}  // namespace tandem
