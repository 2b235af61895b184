#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/load_generator.h"

namespace tandem {

struct Distribution {
  size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, p999 = 0, max = 0;
};

// An empty one of no values.
Distribution Describe(std::vector<double> values);

// What a user still calls good: the first token within `ttft`, and each further one within `tpot` on average.
struct Slo {
  absl::Duration ttft, tpot;
};

struct LoadReport {
  int requests = 0, failed = 0, warm_up = 0;
  std::map<std::string, int> failures;  // By status and message.
  double seconds = 0;                   // From the first request's due time to the last one's end.
  // Milliseconds, of requests that did not fail: TTFT and end to end from the due time; TPOT a request's mean between
  // tokens; ITL each gap; how late requests were sent.
  Distribution ttft, tpot, itl, e2e, send_delay;
  int workers = 0;  // That it was served by, each on a GPU of its own if on any; 0: unknown.
  double requests_per_second = 0, prompt_tokens_per_second = 0, output_tokens_per_second = 0;
  std::vector<std::pair<Slo, double>> goodput;  // Requests a second that met it.
};

// Leaves the first `warm_up` records out.
LoadReport SummariseLoad(absl::Span<const RequestRecord> records, int warm_up, absl::Span<const Slo> slos);

// A table for people.
std::string DescribeLoad(const LoadReport& report);

// The report as JSON. `context`: what it was measured on and with, by name.
std::string LoadToJson(const LoadReport& report, const std::vector<std::pair<std::string, std::string>>& context);

// Two reports of LoadToJson, beside each other.
struct LoadComparison {
  std::string table;
  std::string svg;  // The ratios B / A as bars.
};
// INVALID_ARGUMENT: one is no report.
absl::StatusOr<LoadComparison> CompareLoads(const std::string& a_name, const std::string& a_json,
                                            const std::string& b_name, const std::string& b_json);

}  // namespace tandem
