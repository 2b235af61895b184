#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/worker_messages.h"
#include "router/output_text.h"
#include "router/placement.h"
#include "router/request.h"

namespace tandem {

// Which of a session's two legs.
enum class LegKind { kPrefill, kDecode };

// What a session wants done; carried out by its owner after each call.
struct SessionActions {
  std::vector<std::pair<Incarnation, StartLeg>> starts;
  std::vector<std::pair<Incarnation, CancelLeg>> cancels;
  SampleUpdate update;
  bool has_update = false;
  bool needs_placement = false;          // Place with placement_request() and call OnPlaced, now or later.
  std::optional<absl::Status> finished;  // The session is over.
  // Of prefill and decode worker: down, as the former has just found, which its last heartbeat did not know.
  std::optional<std::pair<Incarnation, Incarnation>> down_link;
};

// The life of one sample of one request, from admission to its last token:
//
//   queued -> (placed) -> prefilling -> handing over -> decoding -> over
//
// Both legs start at once (only prefill's where a single token is wanted). The first token comes from prefill, the
// others from decode. When a
// worker is lost, the session goes on by rule (docs/failure_model.md): while prefill holds the KV
// another decode worker gets it; else the request starts again somewhere, with the tokens that the
// client has already as part of its prompt.
//
// Pure: no thread, clock or RPC; time is passed in.
//
// Thread-safety: not thread-safe; the router's owner thread owns it.
// Ownership: borrows the request, whose prompt may be long and has no second copy here, and the tokenizer; both outlive
// it.
class RequestSession {
 public:
  struct Options {
    int max_retries = 3;
    absl::Duration placement_timeout = absl::Seconds(10);
    bool split = true;  // The cluster has prefill workers.
  };
  RequestSession(const Options& options, const Request& request, int sample, const Tokenizer& tokenizer,
                 absl::Time now);

  // Asks for a first placement.
  SessionActions Begin();
  // What to place now: a pair, or only a decode worker for KV that prefill holds. Its tokens are the session's, until
  // OnPlaced.
  PlacementRequest placement_request();
  // Opens the legs. An error that is not retryable ends the session; a retryable one keeps it
  // waiting.
  SessionActions OnPlaced(const absl::StatusOr<Placement>& placement, const ClusterView& view, absl::Time now);
  // News of a leg. Events of legs that are not current must not get here.
  SessionActions OnLegEvent(LegKind kind, LegEvent event, absl::Time now);
  SessionActions OnWorkerLost(Incarnation worker, absl::Time now);
  SessionActions OnCancel(absl::Time now);
  // Deadline and placement timeout.
  SessionActions OnTick(absl::Time now);

  RequestId prefill_leg() const { return prefill_.id; }
  RequestId decode_leg() const { return decode_.id; }
  Incarnation prefill_worker() const { return prefill_.worker; }
  Incarnation decode_worker() const { return decode_.worker; }
  bool waits_for_placement() const { return state_ == State::kQueued || state_ == State::kAwaitingDecode; }
  bool finished() const { return state_ == State::kOver; }
  int prompt_tokens() const { return static_cast<int>(request_.prompt.size()); }
  // So far.
  RequestUsage usage() const;
  const std::string& name() const { return request_.name; }

 private:
  enum class State {
    kQueued,          // Waits for a pair of workers.
    kPrefilling,      // Both legs are open; no token of this attempt yet.
    kHandingOver,     // The first token is out; decode has not taken over.
    kAwaitingDecode,  // Prefill holds or computes the KV, but there is no decode leg for it.
    kDecoding,        // Decode has the KV (or never needed any).
    kOver,
  };
  struct Leg {
    RequestId id;  // Not set: not open.
    Incarnation worker;
    std::string worker_name;
    bool open() const { return id.is_set(); }
  };
  StartLeg MakeStart(absl::Time now) const;
  // RESOURCE_EXHAUSTED: the first token is predicted to come after the deadline, or after the request's limit; or the
  // others to take longer each than it allows, or as many as there must be to end after the deadline.
  absl::Status CheckInTime(const Placement& placement, absl::Time now) const;
  void OpenBothLegs(const Placement& placement, const ClusterView& view, absl::Time now, SessionActions& actions);
  // For a last token: prefill's is the only one, and its KV goes nowhere.
  void OpenOnlyPrefillLeg(const Placement& placement, const ClusterView& view, StartLeg start, SessionActions& actions);
  void OpenDecodeLeg(const Placement& placement, const ClusterView& view, absl::Time now, SessionActions& actions);
  void OnPrefillEvent(LegEvent event, absl::Time now, SessionActions& actions);
  void OnDecodeEvent(LegEvent event, absl::Time now, SessionActions& actions);
  // Gives tokens to the client; ends the session on a stop string.
  void Deliver(std::vector<SampledToken> tokens, absl::Time now, SessionActions& actions);
  void FinishWell(RequestFinish finish, absl::Time now, SessionActions& actions);
  void Fail(const absl::Status& status, SessionActions& actions);
  // Starts again from the tokens there are, unless that happened too often.
  void Retry(const absl::Status& cause, Incarnation avoid, absl::Time now, SessionActions& actions);
  // Looks for another decode worker for the KV that prefill has. Counts as a retry, unless decode was just full: that
  // is bounded by the time for which prefill holds KV.
  void FindAnotherDecode(const absl::Status& cause, Incarnation avoid, absl::Time now, SessionActions& actions);
  // The prompt, and what was delivered.
  std::vector<TokenId> TokensSoFar() const;
  bool CountRetry(const absl::Status& cause, SessionActions& actions);
  void CloseLegs(SessionActions& actions);
  void Close(Leg& leg, SessionActions& actions);

  const Options options_;
  const Request& request_;
  const int sample_;
  OutputText text_;
  State state_ = State::kQueued;
  Leg prefill_, decode_;
  HandoverId handover_;
  std::vector<TokenId> output_;             // What was delivered, of all attempts.
  std::vector<TokenId> tokens_to_place_;    // What placement_request() has, where that is not the prompt alone.
  bool first_token_seen_ = false;           // Of this attempt.
  std::vector<SampledToken> early_tokens_;  // Decode's, that overtook prefill's first token.
  std::optional<LegEvent> early_end_;
  std::vector<Incarnation> avoid_;
  int retries_ = 0;
  absl::Status last_cause_;
  absl::Time waiting_since_;
  absl::Time arrival_, first_token_time_ = absl::InfiniteFuture(), second_token_time_ = absl::InfiniteFuture();
  absl::Time last_token_time_ = absl::InfiniteFuture();
  int cached_tokens_ = 0;
  StageDurations stages_;
};

}  // namespace tandem
