#include "router/router_metrics.h"

namespace tandem {
namespace {

prometheus::Histogram& Stage(MetricsServer& server, const char* stage) {
  return server.Seconds("tandem_stage_seconds", "Where requests' time went.", {{"stage", stage}});
}

}  // namespace

RouterMetrics::RouterMetrics(MetricsServer& server, const std::string& model)
    : server_(server),
      ttft_(server.Seconds("tandem_ttft_seconds", "Arrival of a request until its first token.")),
      itl_(server.Seconds("tandem_itl_seconds", "Between two tokens of a sample.")),
      queue_(Stage(server, "queue")),
      prefill_(Stage(server, "prefill")),
      transfer_(Stage(server, "transfer")),
      handover_(Stage(server, "handover")),
      decode_(Stage(server, "decode")),
      prompt_tokens_(server.Counter("tandem_prompt_tokens_total", "Prompt tokens of finished samples.")),
      output_tokens_(server.Counter("tandem_output_tokens_total", "Tokens sent to clients.")),
      cached_tokens_(server.Counter("tandem_cached_tokens_total", "Prompt tokens found in prefix caches.")),
      retries_(server.Counter("tandem_retries_total", "Moves of requests to other workers.")),
      active_(server.Gauge("tandem_active_requests", "Samples inside the router.")),
      vllm_(server, model) {}

void RouterMetrics::CountRequest(const absl::Status& outcome) {
  server_
      .Counter("tandem_requests_total", "Calls by how they ended.",
               {{"outcome", absl::StatusCodeToString(outcome.code())}})
      .Increment();
}

void RouterMetrics::ObserveUpdate(const SampleUpdate& update) {
  vllm_.ObserveUpdate(update);
  output_tokens_.Increment(static_cast<double>(update.tokens.size()));
  if (!update.tokens.empty()) {
    (update.has_first_token ? ttft_ : itl_).Observe(absl::ToDoubleSeconds(update.latency));
  }
}

void RouterMetrics::ObserveEnd(const RequestUsage& usage, const absl::Status& outcome) {
  retries_.Increment(usage.retries);
  if (!outcome.ok()) return;
  vllm_.ObserveEnd(usage);
  prompt_tokens_.Increment(usage.prompt_tokens);
  cached_tokens_.Increment(usage.cached_tokens);
  auto observe = [](prometheus::Histogram& histogram, absl::Duration stage) {
    histogram.Observe(absl::ToDoubleSeconds(stage));
  };
  observe(queue_, usage.stages.queue);
  observe(prefill_, usage.stages.prefill);
  if (usage.completion_tokens < 2) return;  // Nothing was handed over, nothing decoded.
  observe(decode_, usage.stages.decode);
  if (usage.prefill_worker.empty()) return;  // One worker did both.
  observe(transfer_, usage.stages.transfer);
  observe(handover_, usage.stages.handover);
}

void RouterMetrics::ObserveCall(const Request& request, const RequestUsage& usage, const absl::Status& outcome) {
  CountRequest(outcome);
  if (outcome.ok()) vllm_.ObserveCall(request, usage);
}

void RouterMetrics::CountWorkerLost(const std::string& worker) {
  server_
      .Counter("tandem_workers_lost_total",
               "Workers that ended or fell silent with work or without having been drained.", {{"worker", worker}})
      .Increment();
}

void RouterMetrics::SetState(const ClusterView& view, int64_t active, int64_t waiting) {
  vllm_.SetState(view, active, waiting);
  active_.Set(static_cast<double>(active));
  int prefill = 0, decode = 0;
  for (const auto& [incarnation, worker] : view.workers()) {
    (worker.registration.role == Role::kPrefill ? prefill : decode) += worker.AcceptsWork();
  }
  server_.Gauge("tandem_workers_ready", "Workers that accept work.", {{"role", "prefill"}}).Set(prefill);
  server_.Gauge("tandem_workers_ready", "Workers that accept work.", {{"role", "decode"}}).Set(decode);
}

}  // namespace tandem
