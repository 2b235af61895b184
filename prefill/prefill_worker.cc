#include "prefill/prefill_worker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "engine/leg_request.h"

namespace tandem {

void PrefillWorker::OnCommands(Engine& engine, int64_t session, const CommandFrame& frame) {
  for (const StartLeg& start : frame.starts) StartLegNow(engine, session, start);
  for (const CancelLeg& cancel : frame.cancels) {
    if (cancel.retarget.is_set()) {
      Retarget(engine, cancel);
    } else {
      CancelLegNow(engine, cancel.id, "cancelled by the router");
    }
  }
}

void PrefillWorker::StartLegNow(Engine& engine, int64_t session, const StartLeg& start) {
  SequenceRequest request = ToSequenceRequest(start, clock_.Now());
  request.hold_after_first_token = true;
  if (absl::Status status = engine.Add(std::move(request)); !status.ok()) {
    metrics_.CountLeg("refused");
    SendOne(session, {.id = start.id, .error = status});
    return;
  }
  legs_[start.id] = {.session = session, .start = start, .started = clock_.Now()};
}

void PrefillWorker::OnProgress(const Engine& engine, const KvProgress& progress) {
  auto entry = legs_.find(progress.id);
  if (entry == legs_.end() || entry->second.over) return;
  Leg& leg = entry->second;
  // Decode binds its pages from now on, not earlier. Without a hand-over, the first token is the only one.
  if (!std::exchange(leg.scheduled, true) && leg.start.handover.is_set()) Offer(engine, leg);
  if (!leg.offered) return;
  destination_.LayersReady(leg.start.peer, leg.start.handover, {progress.begin_token, progress.end_token},
                           {progress.begin_layer, progress.end_layer}, progress.ready);
}

void PrefillWorker::OnEngineEvents(Engine& engine, std::vector<SequenceEvent> events) {
  absl::flat_hash_map<int64_t, EventFrame> frames;  // By session.
  for (SequenceEvent& event : events) {
    const RequestId id = event.id;
    auto entry = legs_.find(id);
    if (entry == legs_.end()) {
      engine.Cancel(id);
      continue;
    }
    Leg& leg = entry->second;
    const FinishReason finish = event.finish;
    const bool failed = !event.error.ok();
    const std::string error = failed ? std::string(event.error.message()) : "";
    if (event.first_token) metrics_.ObserveFirstToken(event.queue_time, event.prefill_time, event.cached_tokens);
    if (event.token.has_value()) leg.first_token = event.token->token;
    leg.held_since = clock_.Now();
    if (!leg.over) frames[leg.session].events.push_back(ToLegEvent(std::move(event)));
    if (failed) {
      LogInfo("request failed", {{"request", leg.start.name}, {"trace", leg.start.trace_parent}, {"error", error}});
      EndLeg(engine, id, "failed");
    } else if (finish != FinishReason::kNone) {
      EndLeg(engine, id, "finished with the first token");
    } else if (leg.offered) {
      destination_.Finish(leg.start.peer, leg.start.handover, *leg.first_token);
    }
  }
  for (auto& [session, frame] : frames) send_(session, std::move(frame));
}

void PrefillWorker::OnOutcome(Engine& engine, const HandoverOutcome& outcome) {
  auto handover = handovers_.find(outcome.handover);
  if (handover == handovers_.end()) return;
  const RequestId id = handover->second;
  handovers_.erase(handover);
  Leg& leg = legs_.at(id);
  --leg.open_handovers;
  metrics_.CountHandover(outcome);
  const bool current = leg.start.handover == outcome.handover;
  if (current) leg.offered = false;
  if (leg.over) {
    FreeIfUnread(engine, id);
    return;
  }
  if (outcome.kind == HandoverOutcome::Kind::kAcked) {
    // Also of an older hand-over: a decode worker has taken over, and the router learns which.
    SendOne(
        leg.session,
        {.id = id, .finish = LegFinish::kHandedOver, .handover = outcome.handover, .transfer = outcome.transfer_time});
    metrics_.CountLeg("handed_over");
    EndLeg(engine, id, "another decode worker took over");
    return;
  }
  if (!current) return;
  // The KV is still here (or still being computed): the router says where to.
  LogInfo("hand-over failed", {{"request", leg.start.name},
                               {"trace", leg.start.trace_parent},
                               {"peer", leg.start.peer_worker},
                               {"reason", outcome.reason}});
  SendOne(leg.session,
          {.id = id,
           .handover_error = MakeError(absl::StatusCode::kUnavailable, outcome.error_reason, outcome.reason),
           .handover = outcome.handover});
  if (leg.held_since == absl::InfiniteFuture() && leg.first_token.has_value()) leg.held_since = clock_.Now();
}

void PrefillWorker::Retarget(Engine& engine, const CancelLeg& command) {
  auto entry = legs_.find(command.id);
  if (entry == legs_.end() || entry->second.over) return;  // It ended meanwhile; the router has been told.
  Leg& leg = entry->second;
  // The router heard of the loss first: the old hand-over ends without waiting for its outcome. Both only read.
  if (leg.offered) destination_.Cancel(leg.start.peer, leg.start.handover, "moved to another decode worker");
  leg.start.peer = command.retarget;
  leg.start.peer_worker = command.retarget_worker;
  leg.start.handover = command.handover;
  leg.offered = false;
  metrics_.CountLeg("retargeted");
  if (!leg.scheduled) return;  // It is offered when it begins.
  Offer(engine, leg);
  destination_.LayersReady(leg.start.peer, leg.start.handover, {0, engine.ComputedTokens(command.id)},
                           {0, engine.layout().num_layers}, engine.KvReady());
  if (leg.first_token.has_value()) destination_.Finish(leg.start.peer, leg.start.handover, *leg.first_token);
}

void PrefillWorker::Offer(const Engine& engine, Leg& leg) {
  leg.offered = true;
  ++leg.open_handovers;
  handovers_[leg.start.handover] = leg.start.id;
  absl::Span<const PageIndex> pages = engine.PagesOf(leg.start.id);
  destination_.Start(leg.start.peer, leg.start.handover, leg.start.tokens, {pages.begin(), pages.end()});
}

void PrefillWorker::CancelLegNow(Engine& engine, RequestId id, const std::string& reason) {
  auto entry = legs_.find(id);
  if (entry == legs_.end() || entry->second.over) return;
  metrics_.CountLeg("cancelled");
  EndLeg(engine, id, reason);
}

void PrefillWorker::EndLeg(Engine& engine, RequestId id, const std::string& reason) {
  Leg& leg = legs_.at(id);
  if (std::exchange(leg.over, true)) return;
  engine.StopAndHold(id);
  if (leg.offered) destination_.Cancel(leg.start.peer, leg.start.handover, reason);
  FreeIfUnread(engine, id);
}

void PrefillWorker::FreeIfUnread(Engine& engine, RequestId id) {
  if (legs_.at(id).open_handovers > 0) return;
  engine.Cancel(id);
  legs_.erase(id);
}

void PrefillWorker::OnSessionClosed(Engine& engine, int64_t session) {
  std::vector<RequestId> ids;
  for (const auto& [id, leg] : legs_) {
    if (leg.session == session) ids.push_back(id);
  }
  for (RequestId id : ids) CancelLegNow(engine, id, "the router is gone");
}

void PrefillWorker::OnTurn(Engine& engine) {
  const absl::Time now = clock_.Now();
  std::vector<RequestId> expired;
  for (const auto& [id, leg] : legs_) {
    bool past_deadline = leg.start.remaining < absl::InfiniteDuration() && leg.started + leg.start.remaining <= now;
    if (!leg.over && leg.first_token.has_value() && (now - leg.held_since > kv_hold_ || past_deadline)) {
      expired.push_back(id);
    }
  }
  for (RequestId id : expired) {
    const Leg& leg = legs_.at(id);
    bool held_too_long = now - leg.held_since > kv_hold_;
    absl::Status error =
        held_too_long ? MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kKvHoldExpired,
                                  absl::StrCat("no decode worker took the KV within ", absl::FormatDuration(kv_hold_)))
                      : absl::DeadlineExceededError("deadline passed before decode took over");
    SendOne(leg.session, {.id = id, .error = error});
    metrics_.CountLeg("expired");
    EndLeg(engine, id, "held too long");
  }
}

}  // namespace tandem
