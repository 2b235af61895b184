#include "router/request_session.h"

#include <xxhash.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "router/tracing.h"

namespace tandem {
namespace {

// Of the predicted time to the first token: it will hardly come sooner.
constexpr double kSurely = 0.8;

// The first sample has the request's own seed. The others' are hashed, not counted up: the sampler itself counts from
// the seed, and their draws must not be those of another sample at another token.
uint64_t SampleSeed(uint64_t seed, int sample) {
  if (sample == 0) return seed;
  const uint64_t pair[] = {seed, static_cast<uint64_t>(sample)};
  return XXH3_64bits(pair, sizeof(pair));
}

// That the answer has, whatever the model says.
int LeastTokens(const Request& request) {
  const SamplingParams& sampling = request.sampling;
  if (sampling.format != nullptr) return 1;  // It may be complete.
  const bool ends_at_limit = sampling.ignore_eos && request.stops.empty() && sampling.stop_token_ids.empty();
  return std::max({1, sampling.min_tokens, ends_at_limit ? sampling.max_tokens : 1});
}

}  // namespace

RequestSession::RequestSession(const Options& options, const Request& request, int sample, const Tokenizer& tokenizer,
                               absl::Time now)
    : options_(options),
      request_(request),
      sample_(sample),
      text_(tokenizer, request.stops),
      waiting_since_(now),
      arrival_(request.arrival) {}

// --- Placement ---

SessionActions RequestSession::Begin() {
  SessionActions actions;
  actions.needs_placement = true;
  return actions;
}

PlacementRequest RequestSession::placement_request() {
  PlacementRequest request;
  request.tokens = request_.prompt;
  if (!output_.empty()) {
    tokens_to_place_ = TokensSoFar();
    request.tokens = tokens_to_place_;
  }
  request.split = options_.split;
  request.avoid = avoid_;
  request.place = request_.place();
  if (request_.sampling.max_tokens > 0) {
    request.max_output_tokens = request_.sampling.max_tokens - static_cast<int>(output_.size());
  }
  request.affinity = request_.affinity;
  if (state_ == State::kAwaitingDecode) request.fixed_prefill = prefill_.worker;
  return request;
}

SessionActions RequestSession::OnPlaced(const absl::StatusOr<Placement>& placement, const ClusterView& view,
                                        absl::Time now) {
  tokens_to_place_ = {};
  SessionActions actions;
  if (!placement.ok()) {
    if (!IsRetryable(placement.status())) Fail(placement.status(), actions);
    last_cause_ = placement.status();
    return actions;  // The owner tries again when the cluster changes.
  }
  if (absl::Status late = CheckInTime(*placement, now); !late.ok()) {
    Fail(late, actions);
    return actions;
  }
  if (retries_ > 0) LogInfo("request placed again", {{"request", request_.name}, {"reason", placement->reason}});
  if (state_ == State::kAwaitingDecode) {
    OpenDecodeLeg(*placement, view, now, actions);
  } else {
    OpenBothLegs(*placement, view, now, actions);
  }
  return actions;
}

absl::Status RequestSession::CheckInTime(const Placement& placement, absl::Time now) const {
  // Further samples wait for the first one of their own call, which is no reason to refuse it; and what was begun goes
  // on until its deadline.
  if (sample_ > 0 || retries_ > 0 || state_ != State::kQueued) return absl::OkStatus();
  const auto refuse = [](absl::string_view what, absl::Duration predicted, absl::string_view allows,
                         absl::Duration allowed, absl::Duration retry_after) {
    const auto rounded = [](absl::Duration time) {
      return absl::FormatDuration(absl::Trunc(std::max(time, absl::ZeroDuration()), absl::Milliseconds(1)));
    };
    return MakeError(
        absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
        absl::StrCat(what, " is predicted to come in ", rounded(predicted), ", and ", allows, " ", rounded(allowed)),
        std::clamp(retry_after, absl::Milliseconds(10), absl::Seconds(30)));
  };
  const absl::Duration first = placement.is_sure_to_wait ? placement.predicted_ttft * kSurely : absl::ZeroDuration();
  const absl::Duration further = placement.is_sure_to_share ? placement.predicted_tpot * kSurely : absl::ZeroDuration();
  const absl::Duration until_deadline = request_.deadline - now;
  const absl::Duration left = std::min(until_deadline, arrival_ + request_.ttft_limit - now);
  if (placement.is_sure_to_wait && first > left) {
    return refuse("the first token", placement.predicted_ttft, "the deadline or the service tier leaves", left,
                  first - left);
  }
  if (request_.sampling.max_tokens == 1) return absl::OkStatus();
  if (further > request_.tpot_limit) {
    // By then one of those that run has likely ended.
    return refuse("each further token", placement.predicted_tpot, "the service tier allows", request_.tpot_limit,
                  placement.predicted_tpot * kTypicalOutputTokens);
  }
  const absl::Duration whole = first + further * (LeastTokens(request_) - 1);
  if (placement.is_sure_to_share && whole > until_deadline) {
    return refuse("the whole answer", whole / kSurely, "the deadline leaves", until_deadline, whole - until_deadline);
  }
  return absl::OkStatus();
}

std::vector<TokenId> RequestSession::TokensSoFar() const {
  std::vector<TokenId> tokens;
  tokens.reserve(request_.prompt.size() + output_.size());
  tokens.insert(tokens.end(), request_.prompt.begin(), request_.prompt.end());
  tokens.insert(tokens.end(), output_.begin(), output_.end());
  return tokens;
}

StartLeg RequestSession::MakeStart(absl::Time now) const {
  StartLeg start;
  start.name = request_.name;
  start.trace_parent = TraceParentOf(request_.trace);
  start.tokens = TokensSoFar();
  start.output_tokens = static_cast<int>(output_.size());
  start.sampling = request_.sampling;
  start.sampling.seed = SampleSeed(start.sampling.seed, sample_);
  start.priority = request_.priority;
  start.due = request_.place().due - now;
  start.remaining = request_.deadline - now;
  return start;
}

void RequestSession::OpenBothLegs(const Placement& placement, const ClusterView& view, absl::Time now,
                                  SessionActions& actions) {
  StartLeg start = MakeStart(now);
  first_token_seen_ = false;
  if (placement.prefill.is_set() && start.sampling.max_tokens - start.output_tokens == 1) {
    OpenOnlyPrefillLeg(placement, view, std::move(start), actions);
    return;
  }
  decode_ = {RequestId(DrawRandomId()), placement.decode, view.Find(placement.decode)->registration.worker_id};
  start.id = decode_.id;
  if (!placement.prefill.is_set()) {
    prefill_ = {};  // Of an attempt before this one.
    handover_ = {};
    first_token_seen_ = true;  // There is one leg: nothing can overtake.
    state_ = State::kDecoding;
    actions.starts.emplace_back(decode_.worker, std::move(start));
    return;
  }
  prefill_ = {RequestId(DrawRandomId()), placement.prefill, view.Find(placement.prefill)->registration.worker_id};
  handover_ = HandoverId(DrawRandomId());
  start.handover = handover_;
  start.peer = prefill_.worker;
  start.peer_worker = prefill_.worker_name;
  StartLeg prefill_start = start;
  prefill_start.id = prefill_.id;
  prefill_start.peer = decode_.worker;
  prefill_start.peer_worker = decode_.worker_name;
  state_ = State::kPrefilling;
  actions.starts.emplace_back(decode_.worker, std::move(start));
  actions.starts.emplace_back(prefill_.worker, std::move(prefill_start));
}

void RequestSession::OpenOnlyPrefillLeg(const Placement& placement, const ClusterView& view, StartLeg start,
                                        SessionActions& actions) {
  decode_ = {};
  handover_ = {};
  prefill_ = {RequestId(DrawRandomId()), placement.prefill, view.Find(placement.prefill)->registration.worker_id};
  start.id = prefill_.id;
  state_ = State::kPrefilling;
  actions.starts.emplace_back(prefill_.worker, std::move(start));
}

void RequestSession::OpenDecodeLeg(const Placement& placement, const ClusterView& view, absl::Time now,
                                   SessionActions& actions) {
  StartLeg start = MakeStart(now);
  // The KV that prefill has is that of the tokens without the first one, which comes with the
  // Commit.
  if (first_token_seen_) {
    start.tokens.pop_back();
    --start.output_tokens;
  }
  decode_ = {RequestId(DrawRandomId()), placement.decode, view.Find(placement.decode)->registration.worker_id};
  handover_ = HandoverId(DrawRandomId());
  start.id = decode_.id;
  start.handover = handover_;
  start.peer = prefill_.worker;
  start.peer_worker = prefill_.worker_name;
  state_ = first_token_seen_ ? State::kHandingOver : State::kPrefilling;
  actions.starts.emplace_back(decode_.worker, std::move(start));
  actions.cancels.emplace_back(prefill_.worker, CancelLeg{prefill_.id, decode_.worker, decode_.worker_name, handover_});
}

// --- News of the legs ---

SessionActions RequestSession::OnLegEvent(LegKind kind, LegEvent event, absl::Time now) {
  SessionActions actions;
  if (kind == LegKind::kPrefill) {
    OnPrefillEvent(std::move(event), now, actions);
  } else {
    OnDecodeEvent(std::move(event), now, actions);
  }
  return actions;
}

void RequestSession::OnPrefillEvent(LegEvent event, absl::Time now, SessionActions& actions) {
  if (!event.error.ok()) {
    Incarnation worker = prefill_.worker;
    prefill_ = {};
    if (state_ == State::kDecoding) return;  // Decode has the KV: prefill's fate does not matter.
    if (IsRetryable(event.error)) {
      Retry(event.error, worker, now, actions);
    } else {
      Fail(event.error, actions);
    }
    return;
  }
  if (!event.handover_error.ok()) {
    if (GetErrorReason(event.handover_error) == ErrorReason::kLinkDown && event.handover == handover_) {
      actions.down_link = {prefill_.worker, decode_.worker};
    }
    if (state_ == State::kDecoding) {
      // Decode took over, and prefill has not heard of it: the KV that it still holds is of no use.
      Close(prefill_, actions);
    } else if (event.handover == handover_ && state_ != State::kAwaitingDecode) {
      FindAnotherDecode(event.handover_error, decode_.worker, now, actions);
    }
    return;
  }
  if (event.finish == LegFinish::kHandedOver) {
    stages_.transfer += event.transfer;
    prefill_.id = {};
    // The decode worker that took over may have been given up meanwhile: then the KV is gone.
    const bool given_up = state_ == State::kAwaitingDecode || event.handover != handover_;
    if (given_up && state_ != State::kDecoding && state_ != State::kQueued) {
      Retry(MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerLost,
                      "the decode worker that took over was lost"),
            decode_.worker, now, actions);
    }
    return;
  }
  // The first token of this attempt, and maybe the end.
  stages_.prefill += event.prefill;
  cached_tokens_ = std::max(cached_tokens_, event.cached_tokens);
  first_token_seen_ = true;
  if (state_ == State::kPrefilling) state_ = State::kHandingOver;
  const LegFinish finish = event.finish;
  Deliver(std::move(event.tokens), now, actions);
  if (finished()) return;
  if (finish != LegFinish::kNone) {
    FinishWell(finish == LegFinish::kStop ? RequestFinish::kStop : RequestFinish::kLength, now, actions);
    return;
  }
  Deliver(std::exchange(early_tokens_, {}), now, actions);
  if (!finished() && early_end_.has_value()) OnDecodeEvent(*std::exchange(early_end_, std::nullopt), now, actions);
}

void RequestSession::OnDecodeEvent(LegEvent event, absl::Time now, SessionActions& actions) {
  if (!event.error.ok()) {
    Incarnation worker = decode_.worker;
    decode_ = {};
    if (!IsRetryable(event.error)) {
      Fail(event.error, actions);
    } else if (state_ != State::kDecoding && prefill_.open()) {
      FindAnotherDecode(event.error, worker, now, actions);
    } else {
      Retry(event.error, worker, now, actions);
    }
    return;
  }
  if (event.taken_over) state_ = State::kDecoding;
  if (!first_token_seen_) {
    // Two streams: decode's tokens overtook prefill's first one.
    early_tokens_.insert(early_tokens_.end(), event.tokens.begin(), event.tokens.end());
    event.tokens.clear();
    if (event.finish != LegFinish::kNone) early_end_ = std::move(event);
    return;
  }
  if (!prefill_.worker.is_set() && event.prefill > absl::ZeroDuration()) {  // One leg did both.
    stages_.prefill += event.prefill;
    cached_tokens_ = std::max(cached_tokens_, event.cached_tokens);
  }
  Deliver(std::move(event.tokens), now, actions);
  if (!finished() && event.finish != LegFinish::kNone) {
    FinishWell(event.finish == LegFinish::kStop ? RequestFinish::kStop : RequestFinish::kLength, now, actions);
  }
}

void RequestSession::Deliver(std::vector<SampledToken> tokens, absl::Time now, SessionActions& actions) {
  for (SampledToken& token : tokens) {
    output_.push_back(token.token);
    const int num_output = static_cast<int>(output_.size());
    if (!actions.has_update) actions.update.latency = now - (num_output == 1 ? arrival_ : last_token_time_);
    if (num_output == 1) {
      first_token_time_ = now;
      actions.update.has_first_token = true;
    }
    if (num_output == 2) second_token_time_ = now;
    last_token_time_ = now;
    bool check_stops = num_output > request_.sampling.min_tokens;
    bool stopped = text_.Append(token.token, check_stops);
    actions.has_update = true;
    actions.update.tokens.push_back(std::move(token));
    if (stopped) {
      FinishWell(RequestFinish::kStop, now, actions);
      return;
    }
  }
  if (actions.has_update) {
    actions.update.index = sample_;
    actions.update.text += text_.Take();
  }
}

// --- Ends and losses ---

void RequestSession::FinishWell(RequestFinish finish, absl::Time, SessionActions& actions) {
  text_.Finish();
  actions.has_update = true;
  actions.update.index = sample_;
  actions.update.text += text_.Take();
  actions.update.finish = finish;
  CloseLegs(actions);
  actions.finished = absl::OkStatus();
  state_ = State::kOver;
}

void RequestSession::Fail(const absl::Status& status, SessionActions& actions) {
  CloseLegs(actions);
  actions.finished = status;
  state_ = State::kOver;
}

void RequestSession::Close(Leg& leg, SessionActions& actions) {
  if (leg.open()) actions.cancels.emplace_back(leg.worker, CancelLeg{.id = leg.id});
  leg.id = {};
}

void RequestSession::CloseLegs(SessionActions& actions) {
  Close(prefill_, actions);
  Close(decode_, actions);
}

bool RequestSession::CountRetry(const absl::Status& cause, SessionActions& actions) {
  if (++retries_ <= options_.max_retries) return true;
  --retries_;
  Fail(absl::Status(absl::StatusCode::kUnavailable,
                    absl::StrCat("gave up after ", retries_, " retries; the last cause: ", cause.message())),
       actions);
  return false;
}

void RequestSession::Retry(const absl::Status& cause, Incarnation avoid, absl::Time now, SessionActions& actions) {
  if (!CountRetry(cause, actions)) return;
  LogInfo("request starts again",
          {{"request", request_.name}, {"tokens_kept", output_.size()}, {"cause", cause.message()}});
  CloseLegs(actions);
  avoid_ = {avoid};
  early_tokens_.clear();
  early_end_.reset();
  state_ = State::kQueued;
  waiting_since_ = now;
  last_cause_ = cause;
  actions.needs_placement = true;
}

void RequestSession::FindAnotherDecode(const absl::Status& cause, Incarnation avoid, absl::Time now,
                                       SessionActions& actions) {
  if (GetErrorReason(cause) != ErrorReason::kPoolExhausted && !CountRetry(cause, actions)) return;
  LogInfo("KV goes to another decode worker", {{"request", request_.name}, {"cause", cause.message()}});
  Close(decode_, actions);
  avoid_ = {avoid};
  early_tokens_.clear();
  early_end_.reset();
  state_ = State::kAwaitingDecode;
  waiting_since_ = now;
  last_cause_ = cause;
  actions.needs_placement = true;
}

SessionActions RequestSession::OnWorkerLost(Incarnation worker, absl::Time now) {
  SessionActions actions;
  if (finished()) return actions;
  absl::Status cause = MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerLost, "a worker was lost");
  const bool prefill_lost = prefill_.open() && prefill_.worker == worker;
  const bool decode_lost = decode_.open() && decode_.worker == worker;
  if (prefill_lost) prefill_.id = {};
  if (decode_lost) decode_.id = {};
  if (prefill_lost && (state_ != State::kDecoding || !first_token_seen_)) {
    Retry(cause, worker, now, actions);
  } else if (decode_lost && state_ != State::kDecoding && prefill_.open()) {
    FindAnotherDecode(cause, worker, now, actions);
  } else if (decode_lost) {
    Retry(cause, worker, now, actions);
  }
  return actions;
}

SessionActions RequestSession::OnCancel(absl::Time) {
  SessionActions actions;
  if (!finished()) Fail(absl::CancelledError("cancelled by the client"), actions);
  return actions;
}

SessionActions RequestSession::OnTick(absl::Time now) {
  SessionActions actions;
  if (finished()) return actions;
  if (now >= request_.deadline) {
    Fail(absl::DeadlineExceededError("deadline passed"), actions);
  } else if (waits_for_placement() && now - waiting_since_ > options_.placement_timeout) {
    Fail(absl::UnavailableError(absl::StrCat("no workers for the request within ",
                                             absl::FormatDuration(options_.placement_timeout), ": ",
                                             last_cause_.message())),
         actions);
  }
  return actions;
}

RequestUsage RequestSession::usage() const {
  RequestUsage usage;
  usage.prompt_tokens = prompt_tokens();
  usage.completion_tokens = static_cast<int>(output_.size());
  usage.cached_tokens = cached_tokens_;
  usage.retries = retries_;
  usage.stages = stages_;
  usage.prefill_worker = prefill_.worker_name;
  usage.decode_worker = decode_.worker_name;
  if (first_token_time_ < absl::InfiniteFuture()) {
    absl::Duration before_first = first_token_time_ - arrival_;
    usage.latency = last_token_time_ - arrival_;
    usage.stages.queue = std::max(absl::ZeroDuration(), before_first - stages_.prefill);
  }
  if (second_token_time_ < absl::InfiniteFuture()) {
    usage.stages.decode = last_token_time_ - second_token_time_;
    absl::Duration step =
        output_.size() > 2 ? usage.stages.decode / static_cast<int64_t>(output_.size() - 2) : absl::ZeroDuration();
    usage.stages.handover = std::max(absl::ZeroDuration(), second_token_time_ - first_token_time_ - step);
  }
  return usage;
}

}  // namespace tandem
