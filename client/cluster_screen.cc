#include "client/cluster_screen.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace tandem {
namespace {

constexpr int kBarWidth = 20;
constexpr absl::string_view kRed = "\x1b[31m", kGreen = "\x1b[32m", kPlain = "\x1b[0m";

class Screen {
 public:
  Screen(int width, bool colours) : width_(width), colours_(colours) {}
  void Line(absl::string_view text) { absl::StrAppend(&out_, text.substr(0, width_), "\n"); }
  // The line's colour is that of how well things are.
  void Line(absl::string_view text, bool is_well) {
    if (colours_) absl::StrAppend(&out_, is_well ? kGreen : kRed);
    absl::StrAppend(&out_, text.substr(0, width_), colours_ ? kPlain : "", "\n");
  }
  std::string Take() { return std::move(out_); }

 private:
  const size_t width_;
  const bool colours_;
  std::string out_;
};

std::string Bar(double share) {
  const int full = std::clamp(static_cast<int>(share * kBarWidth + 0.5), 0, kBarWidth);
  return absl::StrCat(std::string(full, '#'), std::string(kBarWidth - full, '.'));
}

std::string Speed(const WorkerSummary& worker) {
  std::string speed;
  if (worker.prefill_tokens_per_second > 0) {
    absl::StrAppendFormat(&speed, "%.0f prompt tokens/s", worker.prefill_tokens_per_second);
  }
  if (worker.seconds_per_token > 0) {
    absl::StrAppendFormat(&speed, "%s%.1f ms a token", speed.empty() ? "" : ", ", 1e3 * worker.seconds_per_token);
    if (worker.running > 0) absl::StrAppendFormat(&speed, ", %.0f tokens/s", worker.running / worker.seconds_per_token);
  }
  return speed;
}

}  // namespace

std::string DrawCluster(const std::string& router, const ClusterSummary& cluster, int width, bool colours) {
  Screen screen(width, colours);
  int running = 0, waiting = 0;
  for (const WorkerSummary& worker : cluster.workers) {
    running += worker.running;
    waiting += worker.waiting;
  }
  screen.Line(absl::StrFormat("%s  %s  %d active requests, %d sequences running, %d waiting", router,
                              cluster.ready ? "ready" : "NOT READY", cluster.active_requests, running, waiting),
              cluster.ready);
  screen.Line("");
  screen.Line(absl::StrFormat("%-14s %-8s %-10s %7s %7s %9s  %-*s  %s", "worker", "role", "state", "running", "waiting",
                              "queued", kBarWidth + 5, "pages in use", "speed"));
  for (const WorkerSummary& worker : cluster.workers) {
    const double share = worker.total_pages > 0 ? 1 - 1.0 * worker.free_pages / worker.total_pages : 0;
    screen.Line(absl::StrFormat("%-14s %-8s %-10s %7d %7d %9d  %s %3.0f%%  %s", worker.worker_id, worker.role,
                                worker.state, worker.running, worker.waiting, worker.queued_prompt_tokens, Bar(share),
                                100 * share, Speed(worker)),
                worker.state == "ready");
  }
  if (cluster.links.empty()) return screen.Take();
  screen.Line("");
  screen.Line(absl::StrFormat("%-30s %-12s %10s %10s", "link", "transport", "GB/s", "us"));
  for (const LinkSummary& link : cluster.links) {
    const std::string pair = absl::StrCat(link.prefill_worker, " -> ", link.decode_worker);
    screen.Line(link.up ? absl::StrFormat("%-30s %-12s %10.1f %10.1f", pair, link.transport, link.gigabytes_per_second,
                                          link.latency_us)
                        : absl::StrFormat("%-30s down: %s", pair, link.error),
                link.up);
  }
  return screen.Take();
}

}  // namespace tandem
