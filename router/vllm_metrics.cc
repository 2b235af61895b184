#include "router/vllm_metrics.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

using Labels = std::map<std::string, std::string>;

// vLLM's own bounds, so that quantiles of both can be compared.
const std::vector<double> kTtftSeconds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const std::vector<double> kItlSeconds = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                         .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const std::vector<double> kRequestSeconds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                             30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kSamples = {1, 2, 5, 10, 20};
const std::vector<double> kTokens = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                     1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

Labels LabelsOf(const std::string& model, const Labels& more = {}) {
  Labels labels = {{"model_name", model}, {"engine", "0"}};
  labels.insert(more.begin(), more.end());
  return labels;
}

}  // namespace

VllmMetrics::VllmMetrics(MetricsServer& server, const std::string& model)
    : running_(server.Gauge("vllm:num_requests_running", "Samples that workers have.", LabelsOf(model))),
      waiting_(server.Gauge("vllm:num_requests_waiting", "Samples that wait for workers.", LabelsOf(model))),
      cache_usage_(server.Gauge("vllm:kv_cache_usage_perc", "Used share of the decode workers' KV pages, 0 to 1.",
                                LabelsOf(model))),
      preemptions_(server.Counter("vllm:num_preemptions_total",
                                  "Sequences that lost their KV pages to others and were computed again.",
                                  LabelsOf(model))),
      prompt_tokens_(server.Counter("vllm:prompt_tokens_total", "Prompt tokens of finished samples.", LabelsOf(model))),
      generated_tokens_(server.Counter("vllm:generation_tokens_total", "Tokens sent to clients.", LabelsOf(model))),
      cache_queries_(server.Counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in prefix caches.",
                                    LabelsOf(model))),
      cache_hits_(
          server.Counter("vllm:prefix_cache_hits_total", "Prompt tokens found in prefix caches.", LabelsOf(model))),
      stopped_(server.Counter("vllm:request_success_total", "Samples that ended well.",
                              LabelsOf(model, {{"finished_reason", "stop"}}))),
      cut_(server.Counter("vllm:request_success_total", "Samples that ended well.",
                          LabelsOf(model, {{"finished_reason", "length"}}))),
      ttft_(server.Histogram("vllm:time_to_first_token_seconds", "Arrival of a request until its first token.",
                             kTtftSeconds, LabelsOf(model))),
      itl_(server.Histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sample.", kItlSeconds,
                            LabelsOf(model))),
      time_per_token_(server.Histogram("vllm:time_per_output_token_seconds",
                                       "As inter_token_latency_seconds, by its older name.", kItlSeconds,
                                       LabelsOf(model))),
      e2e_(server.Histogram("vllm:e2e_request_latency_seconds", "Arrival of a request until its last token.",
                            kRequestSeconds, LabelsOf(model))),
      queue_(server.Histogram("vllm:request_queue_time_seconds", "Arrival until prefill begins.", kRequestSeconds,
                              LabelsOf(model))),
      prefill_(server.Histogram("vllm:request_prefill_time_seconds", "Computing the prompt.", kRequestSeconds,
                                LabelsOf(model))),
      decode_(server.Histogram("vllm:request_decode_time_seconds", "Second token until the last.", kRequestSeconds,
                               LabelsOf(model))),
      inference_(server.Histogram("vllm:request_inference_time_seconds", "Beginning of prefill until the last token.",
                                  kRequestSeconds, LabelsOf(model))),
      prompt_length_(server.Histogram("vllm:request_prompt_tokens", "Prompt tokens of a finished sample.", kTokens,
                                      LabelsOf(model))),
      output_length_(server.Histogram("vllm:request_generation_tokens", "Tokens generated for a finished sample.",
                                      kTokens, LabelsOf(model))),
      longest_sample_(server.Histogram("vllm:request_max_num_generation_tokens",
                                       "Tokens generated for a call's longest sample.", kTokens, LabelsOf(model))),
      samples_(server.Histogram("vllm:request_params_n", "Samples that a call asked for.", kSamples, LabelsOf(model))),
      max_tokens_(server.Histogram("vllm:request_params_max_tokens", "Most tokens of a sample that a call allowed.",
                                   kTokens, LabelsOf(model))),
      server_(server),
      model_(model) {}

void VllmMetrics::ObserveUpdate(const SampleUpdate& update) {
  generated_tokens_.Increment(static_cast<double>(update.tokens.size()));
  if (!update.tokens.empty()) {
    const double seconds = absl::ToDoubleSeconds(update.latency);
    (update.has_first_token ? ttft_ : itl_).Observe(seconds);
    if (!update.has_first_token) time_per_token_.Observe(seconds);
  }
  if (update.finish == RequestFinish::kStop) stopped_.Increment();
  if (update.finish == RequestFinish::kLength) cut_.Increment();
}

void VllmMetrics::ObserveEnd(const RequestUsage& usage) {
  prompt_tokens_.Increment(usage.prompt_tokens);
  cache_queries_.Increment(usage.prompt_tokens);
  cache_hits_.Increment(usage.cached_tokens);
  e2e_.Observe(absl::ToDoubleSeconds(usage.latency));
  queue_.Observe(absl::ToDoubleSeconds(usage.stages.queue));
  prefill_.Observe(absl::ToDoubleSeconds(usage.stages.prefill));
  decode_.Observe(absl::ToDoubleSeconds(usage.stages.decode));
  inference_.Observe(absl::ToDoubleSeconds(usage.latency - usage.stages.queue));
  prompt_length_.Observe(usage.prompt_tokens);
  output_length_.Observe(usage.completion_tokens);
}

void VllmMetrics::ObserveCall(const Request& request, const RequestUsage& usage) {
  longest_sample_.Observe(usage.longest_sample);
  samples_.Observe(request.num_samples);
  if (request.sampling.max_tokens > 0) max_tokens_.Observe(request.sampling.max_tokens);
}

void VllmMetrics::SetState(const ClusterView& view, int64_t active, int64_t waiting) {
  running_.Set(static_cast<double>(active - waiting));
  waiting_.Set(static_cast<double>(waiting));
  double free = 0, total = 0;
  std::map<std::pair<int, int>, int> workers_of;  // By page size and number of pages.
  for (const auto& [config, gauge] : cache_configs_) workers_of[config] = 0;
  for (const auto& [incarnation, worker] : view.workers()) {
    // A worker counts since its start, and may be lost for a while.
    if (const int64_t now = worker.heartbeat.preemptions; now > 0) {
      const int64_t counted = std::exchange(preemptions_of_[incarnation], now);
      if (now > counted) preemptions_.Increment(static_cast<double>(now - counted));
    }
    if (worker.registration.role != Role::kDecode) continue;
    free += worker.heartbeat.free_pages;
    total += worker.registration.total_pages;
    ++workers_of[{worker.registration.page_tokens, worker.registration.total_pages}];
  }
  for (const auto& [config, workers] : workers_of) {
    prometheus::Gauge*& gauge = cache_configs_[config];
    if (gauge == nullptr) {
      gauge = &server_.Gauge("vllm:cache_config_info", "Decode workers whose KV cache has this form.",
                             LabelsOf(model_, {{"block_size", absl::StrCat(config.first)},
                                               {"num_gpu_blocks", absl::StrCat(config.second)}}));
    }
    gauge->Set(workers);
  }
  cache_usage_.Set(total > 0 ? 1 - free / total : 0);
}

}  // namespace tandem
