#pragma once

#include <map>
#include <string>
#include <utility>

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
  // On the link thread.
  void SetLink(const LinkState& state);

 private:
  MetricsServer& server_;
  prometheus::Histogram& queue_seconds_;
  prometheus::Histogram& prefill_seconds_;
  prometheus::Histogram& transfer_seconds_;
  prometheus::Counter& cached_tokens_;
  prometheus::Counter& link_bytes_;
  prometheus::Counter& ignored_messages_;
  std::map<std::string, std::pair<std::string, std::string>> transports_;  // Of each peer, with path. Link thread only.
};

}  // namespace tandem
