#include "decode/decode_metrics.h"

namespace tandem {

DecodeMetrics::DecodeMetrics(MetricsServer& server)
    : server_(server), tokens_(server.Counter("tandem_generated_tokens_total", "Tokens generated here.")) {}

void DecodeMetrics::CountLeg(const std::string& outcome) {
  server_.Counter("tandem_legs_total", "Legs by how they ended.", {{"outcome", outcome}}).Increment();
}

void DecodeMetrics::SetEngine(const WorkerHeartbeat& heartbeat) {
  server_.Gauge("tandem_requests_running", "Sequences with pages.").Set(heartbeat.running_requests);
  server_.Gauge("tandem_requests_waiting", "Sequences that wait for pages or budget.").Set(heartbeat.waiting_requests);
  server_.Gauge("tandem_preemptions", "Sequences that lost their pages and were computed again, since start.")
      .Set(static_cast<double>(heartbeat.preemptions));
  for (const auto& [state, count] : heartbeat.pages) {
    server_.Gauge("tandem_kv_pages", "KV pages by state; they sum to the pool.", {{"state", state}}).Set(count);
  }
}

void DecodeMetrics::SetReceiver(const KvReceiver::Counters& counters) {
  auto set = [&](const char* event, int64_t count) {
    server_.Gauge("tandem_kv_receiver_events", "Hand-over events since start.", {{"event", event}})
        .Set(static_cast<double>(count));
  };
  set("granted", counters.grants);
  set("refused", counters.refusals);
  set("committed", counters.commits);
  set("aborted", counters.aborts);
  set("ignored", counters.ignored_messages);
  set("checksum_failed", counters.checksum_failures);
}

}  // namespace tandem
