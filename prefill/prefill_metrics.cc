#include "prefill/prefill_metrics.h"

namespace tandem {
namespace {

std::string OutcomeName(HandoverOutcome::Kind kind) {
  switch (kind) {
    case HandoverOutcome::Kind::kAcked:
      return "acked";
    case HandoverOutcome::Kind::kRefused:
      return "refused";
    case HandoverOutcome::Kind::kAborted:
      return "aborted";
    case HandoverOutcome::Kind::kLost:
      return "lost";
  }
  return "";
}

}  // namespace

PrefillMetrics::PrefillMetrics(MetricsServer& server)
    : server_(server),
      queue_seconds_(server.Seconds("tandem_prefill_queue_seconds", "Start of a leg until its first step.")),
      prefill_seconds_(server.Seconds("tandem_prefill_compute_seconds", "First step until the first token.")),
      transfer_seconds_(server.Seconds("tandem_kv_transfer_seconds", "First push until decode's Ack.")),
      cached_tokens_(server.Counter("tandem_prefix_cached_tokens_total", "Prompt tokens found in the prefix cache.")),
      link_bytes_(server.Counter("tandem_kv_link_bytes_total", "KV bytes pushed to decode workers.")),
      ignored_messages_(
          server.Counter("tandem_link_ignored_messages_total", "Link messages of unknown hand-overs or old epochs.")) {}

void PrefillMetrics::CountLeg(const std::string& outcome) {
  server_.Counter("tandem_legs_total", "Legs by how they ended.", {{"outcome", outcome}}).Increment();
}

void PrefillMetrics::ObserveFirstToken(absl::Duration queue, absl::Duration prefill, int cached_tokens) {
  queue_seconds_.Observe(absl::ToDoubleSeconds(queue));
  prefill_seconds_.Observe(absl::ToDoubleSeconds(prefill));
  cached_tokens_.Increment(cached_tokens);
}

void PrefillMetrics::CountHandover(const HandoverOutcome& outcome) {
  server_.Counter("tandem_kv_handovers_total", "Hand-overs by outcome.", {{"outcome", OutcomeName(outcome.kind)}})
      .Increment();
  link_bytes_.Increment(static_cast<double>(outcome.bytes));
  if (outcome.kind == HandoverOutcome::Kind::kAcked) {
    transfer_seconds_.Observe(absl::ToDoubleSeconds(outcome.transfer_time));
  }
}

void PrefillMetrics::SetEngine(const WorkerHeartbeat& heartbeat) {
  server_.Gauge("tandem_requests_running", "Sequences with pages.").Set(heartbeat.running_requests);
  server_.Gauge("tandem_requests_waiting", "Sequences that wait for pages or budget.").Set(heartbeat.waiting_requests);
  server_.Gauge("tandem_preemptions", "Sequences that lost their pages and were computed again, since start.")
      .Set(static_cast<double>(heartbeat.preemptions));
  for (const auto& [state, count] : heartbeat.pages) {
    server_.Gauge("tandem_kv_pages", "KV pages by state; they sum to the pool.", {{"state", state}}).Set(count);
  }
}

void PrefillMetrics::SetLink(const LinkState& state) {
  const std::map<std::string, std::string> labels = {{"peer", state.worker_id}};
  server_.Gauge("tandem_link_up", "1 while the link to this decode worker is up.", labels).Set(state.up ? 1 : 0);
  if (!state.up)
    server_.Counter("tandem_link_failures_total", "Losses and failed attempts of links.", labels).Increment();
  server_.Gauge("tandem_link_gigabytes_per_second", "Measured by the link's self-test.", labels)
      .Set(state.gigabytes_per_second);
  server_.Gauge("tandem_link_latency_us", "Of 4 KiB in the link's self-test.", labels).Set(state.latency_us);
  auto set_transport = [&](const std::pair<std::string, std::string>& transport, int value) {
    server_
        .Gauge("tandem_link_transport", "1 for what the link to this decode worker uses, 0 for what it used before.",
               {{"peer", state.worker_id}, {"transport", transport.first}, {"path", transport.second}})
        .Set(value);
  };
  if (auto former = transports_.extract(state.worker_id); !former.empty()) set_transport(former.mapped(), 0);
  if (!state.up) return;
  transports_[state.worker_id] = {state.transport, state.path};
  set_transport({state.transport, state.path}, 1);
}

}  // namespace tandem
