#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Exposer;
}

namespace tandem {

// The metrics of one process, in Prometheus text on /metrics. Names, units and labels are listed in
// docs/metrics.md; each program declares its own in *_metrics.h.
//
// Thread-safety: thread-safe; the returned references are atomic to use and stay valid.
// Ownership: owns the registry and the HTTP server.
class MetricsServer {
 public:
  MetricsServer();
  ~MetricsServer();
  // Starts serving on host:port (port 0: any). UNAVAILABLE when the address is taken.
  absl::Status Listen(const std::string& address);
  // The port in use after Listen(); 0 before.
  int port() const;

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const std::map<std::string, std::string>& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const std::map<std::string, std::string>& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                                   const std::map<std::string, std::string>& labels = {});
  // Seconds, with buckets from 0.1 ms to 100 s.
  prometheus::Histogram& Seconds(const std::string& name, const std::string& help,
                                 const std::map<std::string, std::string>& labels = {});
  // All metrics as Prometheus text.
  std::string Text() const;

 private:
  // Co-owners: the HTTP server, which collects from it.
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string host_;  // Where it listens.
};

}  // namespace tandem
