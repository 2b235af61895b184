#include "router/placement.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/page_hash.h"

namespace tandem {
namespace {

// Page hashes of one prompt, computed once per page size.
class PromptHashes {
 public:
  explicit PromptHashes(absl::Span<const TokenId> tokens) : tokens_(tokens) {}
  // Tokens of the prompt's longest prefix that the worker has cached.
  int HitTokens(const WorkerView& worker) {
    if (worker.prefix_hashes.empty()) return 0;
    const int page_tokens = worker.registration.page_tokens;
    auto [entry, inserted] = hashes_.try_emplace(page_tokens);
    if (inserted) entry->second = ChainedPageHashes(tokens_, page_tokens);
    int pages = 0;
    for (uint64_t hash : entry->second) {
      if (!worker.prefix_hashes.contains(hash)) break;
      ++pages;
    }
    return pages * page_tokens;
  }

 private:
  const absl::Span<const TokenId> tokens_;
  absl::flat_hash_map<int, std::vector<uint64_t>> hashes_;
};

struct PrefillChoice {
  const WorkerView* worker;
  int hit_tokens;
  int64_t tokens_before_first;  // What must be computed before this request's first token.
};

struct DecodeChoice {
  const WorkerView* worker;
  int hit_tokens;
  double load;
};

PrefillChoice ScorePrefill(const WorkerView& worker, int64_t prompt_tokens, PromptHashes& hashes) {
  int hit = std::min<int>(hashes.HitTokens(worker), static_cast<int>(prompt_tokens) - 1);
  int64_t queued = std::max(worker.heartbeat.queued_prompt_tokens, worker.prefill_tokens);
  return {&worker, hit, queued + prompt_tokens - hit};
}

// Running requests, plus a whole pool's worth of them for each page that is missing.
DecodeChoice ScoreDecode(const WorkerView& worker, int64_t prompt_tokens, PromptHashes& hashes) {
  int hit = hashes.HitTokens(worker);
  double pages_needed = static_cast<double>(prompt_tokens - hit) / worker.registration.page_tokens + 1;
  double missing = std::max(0.0, pages_needed - worker.heartbeat.free_pages);
  double running = std::max(worker.heartbeat.running_requests + worker.heartbeat.waiting_requests, worker.legs);
  return {&worker, hit, running + missing - 1e-6 * hit};
}

bool Contains(const std::vector<Incarnation>& list, Incarnation id) {
  return std::find(list.begin(), list.end(), id) != list.end();
}

const std::string& Name(const WorkerView* worker) { return worker->registration.worker_id; }

absl::Status Unavailable(ErrorReason reason, absl::string_view what) {
  return MakeError(absl::StatusCode::kUnavailable, reason, what, absl::Milliseconds(500));
}

// The best decode worker that `prefill` (null: none) can hand over to.
std::optional<DecodeChoice> BestDecode(const ClusterView& view, const WorkerView* prefill, int64_t prompt_tokens,
                                       const std::vector<Incarnation>& avoid, PromptHashes& hashes) {
  std::optional<DecodeChoice> best;
  for (const auto& [incarnation, worker] : view.workers()) {
    if (worker.registration.role != Role::kDecode || !worker.AcceptsWork() || Contains(avoid, incarnation)) continue;
    if (prompt_tokens >= worker.registration.max_context_tokens) continue;
    if (prefill != nullptr && !view.LinkUp(prefill->registration.incarnation, incarnation)) continue;
    DecodeChoice choice = ScoreDecode(worker, prompt_tokens, hashes);
    if (!best.has_value() || std::tie(choice.load, Name(choice.worker)) < std::tie(best->load, Name(best->worker))) {
      best = choice;
    }
  }
  return best;
}

std::optional<Placement> PlaceAvoiding(const ClusterView& view, const PlacementRequest& request,
                                       const std::vector<Incarnation>& avoid) {
  const int64_t prompt_tokens = static_cast<int64_t>(request.tokens.size());
  PromptHashes hashes(request.tokens);
  Placement placement;
  if (!request.split) {
    std::optional<DecodeChoice> decode = BestDecode(view, nullptr, prompt_tokens, avoid, hashes);
    if (!decode.has_value()) return std::nullopt;
    placement.decode = decode->worker->registration.incarnation;
    placement.decode_hit_tokens = decode->hit_tokens;
    placement.reason = absl::StrCat("decode load ", decode->load, ", ", decode->hit_tokens, " tokens cached");
    return placement;
  }
  std::vector<PrefillChoice> choices;
  for (const auto& [incarnation, worker] : view.workers()) {
    if (worker.registration.role != Role::kPrefill) continue;
    if (request.fixed_prefill.is_set() ? incarnation != request.fixed_prefill
                                       : !worker.AcceptsWork() || Contains(avoid, incarnation)) {
      continue;
    }
    if (prompt_tokens >= worker.registration.max_context_tokens) continue;
    choices.push_back(ScorePrefill(worker, prompt_tokens, hashes));
  }
  std::sort(choices.begin(), choices.end(), [](const PrefillChoice& a, const PrefillChoice& b) {
    return std::tie(a.tokens_before_first, a.worker->legs, Name(a.worker)) <
           std::tie(b.tokens_before_first, b.worker->legs, Name(b.worker));
  });
  for (const PrefillChoice& prefill : choices) {
    std::optional<DecodeChoice> decode = BestDecode(view, prefill.worker, prompt_tokens, avoid, hashes);
    if (!decode.has_value()) continue;
    placement.prefill = prefill.worker->registration.incarnation;
    placement.decode = decode->worker->registration.incarnation;
    placement.prefill_hit_tokens = prefill.hit_tokens;
    placement.decode_hit_tokens = decode->hit_tokens;
    placement.reason = absl::StrCat("prefill computes ", prefill.tokens_before_first, " tokens first, ",
                                    prefill.hit_tokens, " cached; decode load ", decode->load);
    return placement;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Placement> Place(const ClusterView& view, const PlacementRequest& request) {
  std::optional<Placement> placement = PlaceAvoiding(view, request, request.avoid);
  if (!placement.has_value() && !request.avoid.empty()) placement = PlaceAvoiding(view, request, {});
  if (placement.has_value()) return *std::move(placement);
  if (!view.HasRole(Role::kDecode)) return Unavailable(ErrorReason::kWorkerLost, "no decode worker is registered");
  if (request.split && !view.HasRole(Role::kPrefill)) {
    return Unavailable(ErrorReason::kWorkerLost, "no prefill worker is registered");
  }
  int longest = 0;
  for (const auto& [incarnation, worker] : view.workers()) {
    longest = std::max(longest, worker.registration.max_context_tokens);
  }
  if (static_cast<int>(request.tokens.size()) >= longest) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, ErrorReason::kRequestTooLong,
        absl::StrCat("prompt: ", request.tokens.size(), " tokens leave no room in the context of ", longest));
  }
  return Unavailable(ErrorReason::kLinkDown, "no pair of workers is ready and linked");
}

}  // namespace tandem
