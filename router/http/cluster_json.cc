#include "router/http/cluster_json.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/http/json_string.h"

namespace tandem {
namespace {

// JSON has no infinity.
double Finite(double value) { return std::isfinite(value) ? value : 0; }

std::string WorkerJson(const WorkerView& worker) {
  const WorkerHeartbeat& heartbeat = worker.heartbeat;
  std::string pages;
  for (const auto& [state, count] : heartbeat.pages) {
    absl::StrAppend(&pages, pages.empty() ? "" : ",", JsonString(state), ":", count);
  }
  const absl::Duration time_per_token =
      worker.speed.TimePerToken(heartbeat.running_requests).value_or(absl::ZeroDuration());
  return absl::StrCat("{\"id\":", JsonString(worker.registration.worker_id), ",\"role\":\"",
                      RoleName(worker.registration.role),
                      "\",\"state\":", JsonString(worker.session_up ? heartbeat.state : "connecting"),
                      ",\"running\":", heartbeat.running_requests, ",\"waiting\":", heartbeat.waiting_requests,
                      ",\"queued_prompt_tokens\":", heartbeat.queued_prompt_tokens, ",\"pages\":{", pages,
                      "},\"total_pages\":", worker.registration.total_pages,
                      ",\"prefill_tokens_per_second\":", Finite(worker.speed.prefill_tokens_per_second().value_or(0)),
                      ",\"ms_per_token\":", Finite(absl::ToDoubleMilliseconds(time_per_token)), "}");
}

std::string LinkJson(const WorkerView& prefill, const LinkReport& link) {
  return absl::StrCat("{\"prefill\":", JsonString(prefill.registration.worker_id),
                      ",\"decode\":", JsonString(link.peer_worker), ",\"up\":", link.up ? "true" : "false",
                      ",\"transport\":", JsonString(link.transport),
                      ",\"gigabytes_per_second\":", Finite(link.gigabytes_per_second),
                      ",\"latency_us\":", Finite(link.latency_us), ",\"error\":", JsonString(link.error), "}");
}

}  // namespace

std::string ClusterJson(const ClusterView& view, absl::string_view model, int64_t active_requests, bool ready) {
  std::vector<const WorkerView*> workers;
  for (const auto& [incarnation, worker] : view.workers()) workers.push_back(&worker);
  std::sort(workers.begin(), workers.end(), [](const WorkerView* a, const WorkerView* b) {
    return a->registration.worker_id < b->registration.worker_id;
  });
  std::string workers_json, links_json;
  for (const WorkerView* worker : workers) {
    absl::StrAppend(&workers_json, workers_json.empty() ? "" : ",", WorkerJson(*worker));
    for (const LinkReport& link : worker->heartbeat.links) {
      if (view.Find(link.peer) == nullptr) continue;  // Drained or lost.
      absl::StrAppend(&links_json, links_json.empty() ? "" : ",", LinkJson(*worker, link));
    }
  }
  return absl::StrCat("{\"ready\":", ready ? "true" : "false", ",\"model\":", JsonString(model),
                      ",\"active_requests\":", active_requests, ",\"workers\":[", workers_json, "],\"links\":[",
                      links_json, "]}");
}

}  // namespace tandem
