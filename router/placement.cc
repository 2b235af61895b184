#include "router/placement.h"

#include <xxhash.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/error_reason.h"

namespace tandem {
namespace {

// What is assumed of workers before any was measured: only the order matters then.
constexpr double kAssumedTokensPerSecond = 10'000;
absl::Duration AssumedTimePerToken(int batch) { return absl::Microseconds(300) * (batch + 32); }

// Costs this close are equal: what is predicted is no more exact.
constexpr double kSameCost = 0.02;

// How much more the worker that a session was at may cost: a little is worth what it has cached.
constexpr double kAffinityCost = 0.1;

// Prefill workers that are looked at where the first choice's links are slow.
constexpr int kPairsTried = 4;

// How much sooner decode must be for a prompt to be prefilled there, where it slows others down.
constexpr double kClearlySooner = 0.8;

struct Candidate {
  const WorkerView* worker = nullptr;
  int hit_tokens = 0;
  double seconds = 0;  // To the first token, or for each token, as the list has it.
  // Of decode workers beside a prefill worker: how fast the link between them is (0: not known), and how long KV comes
  // behind the first token.
  double link_gigabytes_per_second = 0, gap_seconds = 0;
  bool is_in_domain = false;  // That of the prefill worker.
};

bool Contains(const std::vector<Incarnation>& list, Incarnation id) {
  return std::find(list.begin(), list.end(), id) != list.end();
}

absl::Status Unavailable(ErrorReason reason, absl::string_view what) {
  return MakeError(absl::StatusCode::kUnavailable, reason, what, absl::Milliseconds(500));
}

// The mean of what was measured of workers with a role, for those that were not yet.
double MeanPrefillRate(const ClusterView& view, Role role) {
  double sum = 0;
  int count = 0;
  for (const auto& [incarnation, worker] : view.workers()) {
    if (worker.registration.role != role) continue;
    if (const auto rate = worker.speed.prefill_tokens_per_second(); rate.has_value()) {
      sum += *rate;
      ++count;
    }
  }
  return count > 0 ? sum / count : kAssumedTokensPerSecond;
}

// One choice, with what is the same for all candidates.
class Chooser {
 public:
  Chooser(const ClusterView& view, const PlacementRequest& request, const std::vector<Incarnation>& avoid)
      : view_(view),
        request_(request),
        avoid_(avoid),
        prompt_tokens_(static_cast<int>(request.tokens.size())),
        output_tokens_(std::clamp(request.max_output_tokens, 1, kTypicalOutputTokens)),
        mean_rate_(MeanPrefillRate(view, request.split ? Role::kPrefill : Role::kDecode)),
        hits_(view.PrefixHits(request.tokens)) {}

  std::optional<Placement> Choose() {
    if (!request_.split) return ChooseAggregated();
    const std::optional<Pair> best = BestPair();
    if (!best.has_value()) return std::nullopt;
    if (std::optional<Placement> sooner = SoonerOnDecode(best->prefill); sooner.has_value()) return sooner;
    return MakePlacement(best->prefill, best->decode);
  }

 private:
  struct Pair {
    Candidate prefill, decode;
    // Of the whole answer.
    double Seconds(int output_tokens) const { return prefill.seconds + decode.seconds * output_tokens; }
  };
  // The prefill worker with the first token that comes first, and the best decode worker for it. Where the KV would
  // come long after that token, another prefill worker may have a better link: a few are tried.
  std::optional<Pair> BestPair() const {
    std::optional<Pair> best;
    std::vector<Candidate> prefills = PrefillCandidates();
    for (int pairs = 0; !prefills.empty() && pairs < kPairsTried;) {
      const size_t next = PickBest(prefills);
      const Candidate prefill = prefills[next];
      prefills.erase(prefills.begin() + static_cast<std::ptrdiff_t>(next));
      const std::optional<Candidate> decode = BestDecode(prefill);
      if (!decode.has_value()) continue;  // None is linked to it.
      const Pair pair = {prefill, *decode};
      ++pairs;
      // A session stays where it is while that costs little.
      const double worth_it = 1 - (request_.affinity != 0 ? kAffinityCost : kSameCost);
      if (!best.has_value() || pair.Seconds(output_tokens_) < worth_it * best->Seconds(output_tokens_)) best = pair;
      const bool kv_is_late = best->decode.gap_seconds > kSameCost * best->Seconds(output_tokens_);
      if (!kv_is_late || request_.policy != PlacementPolicy::kPredicted) break;
    }
    return best;
  }

  int HitTokens(const WorkerView& worker) const {
    const auto hit = hits_.find(worker.registration.incarnation);
    return hit == hits_.end() ? 0 : hit->second;
  }

  // Prompt tokens that are computed before this prompt's: of what this router sent, those that do not wait behind it;
  // and what the worker has beyond that. A prompt of a later place that is half computed already goes on first, and is
  // not told from one that waits.
  int64_t QueuedTokens(const WorkerView& worker) const {
    int64_t behind = 0;
    const auto& places = worker.prefill_tokens_by_place;
    for (auto last = places.rbegin(); last != places.rend() && request_.place < last->first; ++last) {
      behind += last->second;
    }
    return std::max(worker.heartbeat.queued_prompt_tokens, worker.prefill_tokens) - behind;
  }
  bool IsSureToWait(const WorkerView& worker) const {
    return QueuedTokens(worker) > 0 && worker.speed.prefill_tokens_per_second().has_value();
  }

  // Those that get a token of each step; others wait.
  static int Decoding(const WorkerView& worker) {
    return std::max(worker.heartbeat.running_requests, worker.decoding_legs);
  }
  static bool IsSureToShare(const WorkerView& worker) {
    return Decoding(worker) > 0 && worker.speed.TimePerToken(1).has_value();
  }
  static absl::Duration SharedTimePerToken(const WorkerView& worker) {
    const int batch = Decoding(worker) + 1;
    return worker.speed.TimePerToken(batch).value_or(AssumedTimePerToken(batch));
  }

  // The last token is always computed: its logits are wanted.
  Candidate FirstTokenFrom(const WorkerView& worker) const {
    const int hit = std::min(HitTokens(worker), prompt_tokens_ - 1);
    const int64_t queued = QueuedTokens(worker);
    const double rate = worker.speed.prefill_tokens_per_second().value_or(mean_rate_);
    return {&worker, hit, static_cast<double>(queued + prompt_tokens_ - hit) / rate};
  }

  static int Running(const WorkerView& worker) {
    return std::max(worker.heartbeat.running_requests + worker.heartbeat.waiting_requests, worker.legs);
  }

  // What a place there costs. Each request that waits counts as one that runs, and so does each page that is missing:
  // others must end first.
  double TimePerToken(const WorkerView& worker, int hit) const {
    const int pages_needed = (prompt_tokens_ - hit) / worker.registration.page_tokens + 1;
    const int batch = Running(worker) + 1 + std::max(0, pages_needed - worker.heartbeat.free_pages);
    return absl::ToDoubleSeconds(worker.speed.TimePerToken(batch).value_or(AssumedTimePerToken(batch)));
  }

  bool CanTake(const WorkerView& worker, Role role) const {
    return worker.registration.role == role && worker.AcceptsWork() &&
           !Contains(avoid_, worker.registration.incarnation) &&
           prompt_tokens_ < worker.registration.max_context_tokens;
  }

  std::vector<Candidate> PrefillCandidates() const {
    std::vector<Candidate> candidates;
    if (request_.fixed_prefill.is_set()) {
      const WorkerView* worker = view_.Find(request_.fixed_prefill);
      if (worker != nullptr) candidates.push_back(FirstTokenFrom(*worker));
      return candidates;
    }
    for (const auto& [incarnation, worker] : view_.workers()) {
      if (CanTake(worker, Role::kPrefill)) candidates.push_back(FirstTokenFrom(worker));
    }
    return candidates;
  }

  // Of two drawn from those as good as the best, the one with fewer requests; with an affinity, the one that goes with
  // it best, so that each worker that comes or goes moves few.
  size_t PickBest(const std::vector<Candidate>& candidates) const {
    if (request_.policy == PlacementPolicy::kRoundRobin) return PickNext(candidates);
    const auto cost_of = [&](const Candidate& candidate) -> double {
      return request_.policy == PlacementPolicy::kLeastLoad ? Running(*candidate.worker) : candidate.seconds;
    };
    double least = std::numeric_limits<double>::infinity();
    for (const Candidate& candidate : candidates) least = std::min(least, cost_of(candidate));
    const bool has_affinity = request_.affinity != 0;
    std::vector<size_t> equals;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (cost_of(candidates[i]) <= least * (1 + (has_affinity ? kAffinityCost : kSameCost))) equals.push_back(i);
    }
    // Links between domains are shared by many, which a test of one link alone does not tell.
    const auto is_near = [&](size_t i) { return candidates[i].is_in_domain; };
    if (std::any_of(equals.begin(), equals.end(), is_near)) std::erase_if(equals, std::not_fn(is_near));
    const auto name_of = [&](size_t i) -> const std::string& { return candidates[i].worker->registration.worker_id; };
    if (has_affinity) {
      return *std::max_element(equals.begin(), equals.end(),
                               [&](size_t a, size_t b) { return Fit(name_of(a)) < Fit(name_of(b)); });
    }
    // The view has no order of its own; a draw needs one.
    std::sort(equals.begin(), equals.end(), [&](size_t a, size_t b) { return name_of(a) < name_of(b); });
    const size_t first = equals[request_.random % equals.size()];
    const size_t second = equals[(request_.random >> 32) % equals.size()];
    return candidates[second].worker->legs < candidates[first].worker->legs ? second : first;
  }
  size_t PickNext(const std::vector<Candidate>& candidates) const {
    std::vector<size_t> by_name(candidates.size());
    std::iota(by_name.begin(), by_name.end(), 0);
    const auto name_of = [&](size_t i) -> const std::string& { return candidates[i].worker->registration.worker_id; };
    std::sort(by_name.begin(), by_name.end(), [&](size_t a, size_t b) { return name_of(a) < name_of(b); });
    return by_name[request_.turn % by_name.size()];
  }
  uint64_t Fit(const std::string& worker) const {
    return XXH3_64bits_withSeed(worker.data(), worker.size(), request_.affinity);
  }

  // The seconds for which decode waits for KV after the first token: pushes begin with the computing, and go on beside
  // it.
  double TransferGap(const Candidate& prefill, const WorkerView& decode, int hit, const LinkReport& link,
                     double gigabytes_per_second) const {
    const double pages = static_cast<double>(prompt_tokens_ - hit) / decode.registration.page_tokens;
    if (gigabytes_per_second <= 0) return 0;
    const double transfer = pages * static_cast<double>(decode.registration.page_bytes) / (gigabytes_per_second * 1e9);
    const double rate = prefill.worker->speed.prefill_tokens_per_second().value_or(mean_rate_);
    return std::max(0.0, transfer - (prompt_tokens_ - prefill.hit_tokens) / rate) + link.latency_us * 1e-6;
  }

  // What is assumed of links of a prefill worker that were not measured: the mean of its others, within its domain and
  // beyond it.
  class LinkRates {
   public:
    void Add(bool is_in_domain, double gigabytes_per_second) {
      if (gigabytes_per_second <= 0) return;
      sums_[is_in_domain] += gigabytes_per_second;
      ++counts_[is_in_domain];
    }
    // 0: none of the kind was measured.
    double Mean(bool is_in_domain) const {
      return counts_[is_in_domain] == 0 ? 0 : sums_[is_in_domain] / counts_[is_in_domain];
    }

   private:
    double sums_[2] = {};
    int counts_[2] = {};
  };

  // Of those that `prefill` can hand over to.
  std::optional<Candidate> BestDecode(const Candidate& prefill) const {
    LinkRates rates;
    const auto is_in_domain = [&](const WorkerView& decode) {
      return decode.registration.domain == prefill.worker->registration.domain;
    };
    std::vector<std::pair<const LinkReport*, const WorkerView*>> linked;
    for (const LinkReport& link : prefill.worker->heartbeat.links) {
      const WorkerView* worker = link.up ? view_.Find(link.peer) : nullptr;
      if (worker == nullptr) continue;
      rates.Add(is_in_domain(*worker), link.gigabytes_per_second);
      if (CanTake(*worker, Role::kDecode)) linked.emplace_back(&link, worker);
    }
    std::vector<Candidate> candidates;
    for (const auto& [link, worker] : linked) {
      const bool is_near = is_in_domain(*worker);
      const double rate = link->gigabytes_per_second > 0 ? link->gigabytes_per_second : rates.Mean(is_near);
      const int hit = HitTokens(*worker);
      const double gap = TransferGap(prefill, *worker, hit, *link, rate);
      candidates.push_back({worker, hit, TimePerToken(*worker, hit) + gap / output_tokens_, rate, gap, is_near});
    }
    if (candidates.empty()) return std::nullopt;
    return candidates[PickBest(candidates)];
  }

  // What a decode worker that also prefills costs: its first token, and the others.
  std::optional<Candidate> BestForBoth(int max_tokens) const {
    std::vector<Candidate> candidates;
    for (const auto& [incarnation, worker] : view_.workers()) {
      if (!CanTake(worker, Role::kDecode)) continue;
      Candidate candidate = FirstTokenFrom(worker);
      if (prompt_tokens_ - candidate.hit_tokens > max_tokens) continue;
      candidate.seconds += TimePerToken(worker, candidate.hit_tokens) * output_tokens_;
      candidates.push_back(candidate);
    }
    if (candidates.empty()) return std::nullopt;
    return candidates[PickBest(candidates)];
  }

  std::optional<Placement> ChooseAggregated() const {
    const std::optional<Candidate> decode = BestForBoth(std::numeric_limits<int>::max());
    if (!decode.has_value()) return std::nullopt;
    return OnDecodeAlone(*decode, FirstTokenFrom(*decode->worker).seconds);
  }

  std::optional<Placement> SoonerOnDecode(const Candidate& prefill) const {
    if (request_.conditional_prefill_tokens <= 0 || request_.fixed_prefill.is_set() ||
        request_.policy != PlacementPolicy::kPredicted) {
      return std::nullopt;
    }
    const std::optional<Candidate> decode = BestForBoth(request_.conditional_prefill_tokens);
    if (!decode.has_value()) return std::nullopt;
    // It begins with the next step.
    const double wait = Running(*decode->worker) > 0 ? TimePerToken(*decode->worker, decode->hit_tokens) : 0;
    const double seconds = FirstTokenFrom(*decode->worker).seconds + wait;
    if (seconds >= kClearlySooner * prefill.seconds) return std::nullopt;
    return OnDecodeAlone(*decode, seconds);
  }

  Placement OnDecodeAlone(const Candidate& decode, double first_token_seconds) const {
    Placement placement;
    placement.decode = decode.worker->registration.incarnation;
    placement.decode_hit_tokens = decode.hit_tokens;
    placement.predicted_ttft = absl::Seconds(first_token_seconds);
    placement.is_sure_to_wait = IsSureToWait(*decode.worker);
    placement.predicted_tpot = SharedTimePerToken(*decode.worker);
    placement.is_sure_to_share = IsSureToShare(*decode.worker);
    placement.reason = absl::StrCat(decode.worker->registration.worker_id, " alone: ", Describe(decode, placement),
                                    "; ", DescribeDecode(*decode.worker));
    return placement;
  }

  Placement MakePlacement(const Candidate& prefill, const Candidate& decode) const {
    Placement placement;
    placement.prefill = prefill.worker->registration.incarnation;
    placement.decode = decode.worker->registration.incarnation;
    placement.prefill_hit_tokens = prefill.hit_tokens;
    placement.decode_hit_tokens = decode.hit_tokens;
    placement.predicted_ttft = absl::Seconds(prefill.seconds);
    placement.is_sure_to_wait = IsSureToWait(*prefill.worker);
    placement.predicted_tpot = SharedTimePerToken(*decode.worker);
    placement.is_sure_to_share = IsSureToShare(*decode.worker);
    placement.reason = absl::StrCat(prefill.worker->registration.worker_id, " and ",
                                    decode.worker->registration.worker_id, ": ", Describe(prefill, placement), "; ",
                                    DescribeDecode(*decode.worker), ", ", decode.hit_tokens, " cached on decode, link ",
                                    decode.is_in_domain ? "within " : "to ", decode.worker->registration.domain,
                                    absl::StrFormat(" of %.1f GB/s, KV %.2f ms behind the first token",
                                                    decode.link_gigabytes_per_second, 1e3 * decode.gap_seconds));
    return placement;
  }

  std::string Describe(const Candidate& first, const Placement& placement) const {
    const int64_t queued = QueuedTokens(*first.worker);
    return absl::StrCat(absl::FormatDuration(placement.predicted_ttft), " to the first token (", queued, " queued, ",
                        prompt_tokens_, " in the prompt, ", first.hit_tokens, " cached, at ",
                        static_cast<int64_t>(first.worker->speed.prefill_tokens_per_second().value_or(mean_rate_)),
                        first.worker->speed.prefill_tokens_per_second().has_value() ? "" : " assumed", " tokens/s), ",
                        absl::FormatDuration(placement.predicted_tpot), " a token");
  }

  std::string DescribeDecode(const WorkerView& decode) const {
    return absl::StrCat(request_.affinity != 0 ? "its session's among equals, " : "", Running(decode), " running, ",
                        decode.heartbeat.free_pages, " free pages");
  }

  const ClusterView& view_;
  const PlacementRequest& request_;
  const std::vector<Incarnation>& avoid_;
  const int prompt_tokens_, output_tokens_;
  const double mean_rate_;
  const absl::flat_hash_map<Incarnation, int> hits_;
};

}  // namespace

absl::StatusOr<Placement> Place(const ClusterView& view, const PlacementRequest& request) {
  std::optional<Placement> placement = Chooser(view, request, request.avoid).Choose();
  if (!placement.has_value() && !request.avoid.empty()) placement = Chooser(view, request, {}).Choose();
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
