#pragma once

#include <string>

#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/worker_state.h"
#include "kvtransfer/kv_sender.h"
#include "kvtransfer/sender_hub.h"

namespace tandem {

// The metrics of a prefill worker; docs/metrics.md lists them.
//
// Thread-safety: thread-safe where prometheus-cpp is: all methods.
class PrefillMetrics {
 public:
  explicit PrefillMetrics(MetricsServer& server);
  // How a leg ended: "handed_over", "cancelled", "refused", "expired", or was "retargeted".
  void CountLeg(const std::string& outcome);
  void ObserveFirstToken(absl::Duration queue, absl::Duration prefill, int cached_tokens);
  void CountHandover(const HandoverOutcome& outcome);
  void SetEngine(const WorkerHeartbeat& heartbeat);
  void CountIgnoredMessages(int64_t count) { ignored_messages_.Increment(static_cast<double>(count)); }
  void SetLink(const LinkState& state);

 private:
  MetricsServer& server_;
  prometheus::Histogram& queue_seconds_;
  prometheus::Histogram& prefill_seconds_;
  prometheus::Histogram& transfer_seconds_;
  prometheus::Counter& cached_tokens_;
  prometheus::Counter& link_bytes_;
  prometheus::Counter& ignored_messages_;
};

}  // namespace tandem
