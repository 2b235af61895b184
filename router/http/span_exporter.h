#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/tracing.h"

namespace tandem {

// Spans as a body of OTLP over HTTP, in JSON.
std::string OtlpJson(const std::vector<Span>& spans, absl::string_view service);

// Sends spans to a collector of OpenTelemetry, in batches, on a thread of its own. What the collector does not take is
// dropped, and told in the log once a minute.
//
// Thread-safety: thread-safe.
class SpanExporter {
 public:
  struct Options {
    std::string endpoint;  // host:port; POST /v1/traces.
    std::string service = "tandem-router";
    absl::Duration delay = absl::Seconds(1);    // Longest wait of a span for others.
    absl::Duration timeout = absl::Seconds(2);  // Of one batch.
  };
  explicit SpanExporter(Options options);
  // Sends what is there, once.
  ~SpanExporter();

  // Never waits; drops where too many wait already.
  void Add(std::vector<Span> spans) ABSL_LOCKS_EXCLUDED(mu_);
  int64_t dropped() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Main() ABSL_LOCKS_EXCLUDED(mu_);
  // "" when the collector took it; else why not.
  std::string Post(const std::string& body) const;
  void NoteDropped(int64_t count, const std::string& reason) ABSL_LOCKS_EXCLUDED(mu_);

  const Options options_;
  mutable absl::Mutex mu_;
  std::vector<Span> waiting_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time told_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace tandem
