#pragma once

#include <string>

#include "common/metrics.h"
#include "common/worker_state.h"
#include "kvtransfer/kv_receiver.h"

namespace tandem {

// The metrics of a decode worker; docs/metrics.md lists them.
//
// Thread-safety: thread-safe where prometheus-cpp is: all methods.
class DecodeMetrics {
 public:
  explicit DecodeMetrics(MetricsServer& server);
  // How a leg ended: "finished", "failed", "cancelled" or "refused".
  void CountLeg(const std::string& outcome);
  void CountToken() { tokens_.Increment(); }
  void SetEngine(const WorkerHeartbeat& heartbeat);
  void SetReceiver(const KvReceiver::Counters& counters);

 private:
  MetricsServer& server_;
  prometheus::Counter& tokens_;
};

}  // namespace tandem
