#include "decode/decode_worker.h"

#include <utility>

#include "common/error_reason.h"
#include "common/log.h"
#include "engine/leg_request.h"

namespace tandem {

std::vector<PageIndex> EngineHandoverPages::AcquireHeld(absl::Span<const TokenId> tokens) {
  // All of these tokens' KV may be held already: the token to compute comes after them.
  std::vector<TokenId> and_next(tokens.begin(), tokens.end());
  and_next.push_back(0);
  return cache_.AcquirePrefix(and_next);
}

std::optional<std::vector<PageIndex>> EngineHandoverPages::AllocateGranted(int count) {
  // As for sequences that wait: one page of headroom for each that runs, so that nobody is preempted at once.
  if (cache_.pool().available() < count + engine_.scheduler().num_running()) return std::nullopt;
  return cache_.Allocate(count, PageState::kGranted);
}

void EngineHandoverPages::MarkCommitted(absl::Span<const PageIndex> pages) {
  for (PageIndex page : pages) cache_.pool().SetState(page, PageState::kCommitted);
}

void EngineHandoverPages::Quarantine(absl::Span<const PageIndex> pages) {
  for (PageIndex page : pages) cache_.pool().SetState(page, PageState::kQuarantined);
}

void EngineHandoverPages::Free(absl::Span<const PageIndex> pages) { cache_.Release(pages); }

void DecodeWorker::OnCommands(Engine& engine, int64_t session, const CommandFrame& frame) {
  for (const StartLeg& start : frame.starts) StartLegNow(engine, session, start);
  for (const CancelLeg& cancel : frame.cancels) CancelLegNow(engine, cancel.id, "cancelled by the router");
  receiver_.RetryWaiting(clock_.Now());
  SendPeerMessages();
}

void DecodeWorker::StartLegNow(Engine& engine, int64_t session, const StartLeg& start) {
  Leg leg{.session = session, .start = start, .awaits_kv = start.handover.is_set(), .started = clock_.Now()};
  if (leg.awaits_kv) {
    receiver_.Expect(start.handover, start.tokens);
    if (const auto& format = start.sampling.format; format != nullptr) {
      leg.format_job = engine.CompileFormat(format, absl::MakeConstSpan(start.tokens).last(start.output_tokens));
    }
    handovers_[start.handover] = start.id;
  } else if (absl::Status status = engine.Add(ToSequenceRequest(start, leg.started)); !status.ok()) {
    metrics_.CountLeg("refused");
    SendOne(session, {.id = start.id, .error = status});
    return;
  }
  legs_[start.id] = std::move(leg);
}

void DecodeWorker::CancelLegNow(Engine& engine, RequestId id, const std::string& reason) {
  auto entry = legs_.find(id);
  if (entry == legs_.end()) return;
  if (entry->second.awaits_kv) {
    receiver_.Cancel(entry->second.start.handover, reason);
    handovers_.erase(entry->second.start.handover);
  } else {
    engine.Cancel(id);
  }
  legs_.erase(entry);
  metrics_.CountLeg("cancelled");
}

void DecodeWorker::OnSessionClosed(Engine& engine, int64_t session) {
  std::vector<RequestId> ids;
  for (const auto& [id, leg] : legs_) {
    if (leg.session == session) ids.push_back(id);
  }
  for (RequestId id : ids) CancelLegNow(engine, id, "the router is gone");
  SendPeerMessages();
}

void DecodeWorker::OnEngineEvents(std::vector<SequenceEvent> events) {
  absl::flat_hash_map<int64_t, EventFrame> frames;  // By session.
  for (SequenceEvent& event : events) {
    auto entry = legs_.find(event.id);
    if (entry == legs_.end()) continue;
    const int64_t session = entry->second.session;
    if (event.finish != FinishReason::kNone || !event.error.ok()) {
      if (!event.error.ok()) {
        const StartLeg& start = entry->second.start;
        LogInfo(
            "request failed",
            {{"request", start.name}, {"trace", start.trace_parent}, {"error", std::string(event.error.message())}});
      }
      metrics_.CountLeg(event.error.ok() ? "finished" : "failed");
      legs_.erase(entry);
    }
    if (event.token.has_value()) metrics_.CountToken();
    frames[session].events.push_back(ToLegEvent(std::move(event)));
  }
  for (auto& [session, frame] : frames) send_(session, std::move(frame));
  // Ended sequences gave pages back.
  receiver_.RetryWaiting(clock_.Now());
  SendPeerMessages();
}

void DecodeWorker::OnLinkMessage(Engine& engine, Incarnation peer, const LinkMessage& message) {
  if (const auto* offer = std::get_if<OfferMessage>(&message)) {
    receiver_.OnOffer(peer, *offer, clock_.Now());
  } else if (const auto* commit = std::get_if<CommitMessage>(&message)) {
    OnCommit(engine, peer, *commit);
  } else if (const auto* abort = std::get_if<AbortMessage>(&message)) {
    receiver_.OnAbort(peer, *abort);
    receiver_.RetryWaiting(clock_.Now());
  } else if (const auto* done = std::get_if<AbortDoneMessage>(&message)) {
    receiver_.OnAbortDone(peer, *done);
    receiver_.RetryWaiting(clock_.Now());
  }
  metrics_.SetReceiver(receiver_.counters());
  SendPeerMessages();
}

void DecodeWorker::OnCommit(Engine& engine, Incarnation peer, const CommitMessage& commit) {
  absl::StatusOr<std::optional<ReceivedKv>> received = receiver_.OnCommit(peer, commit);
  if (!received.ok()) {
    FailWaiting(commit.handover, received.status());
  } else if (received->has_value()) {
    TakeOver(engine, **received);
  }
}

void DecodeWorker::TakeOver(Engine& engine, const ReceivedKv& received) {
  auto handover = handovers_.find(received.handover);
  if (handover == handovers_.end()) {  // Cancelled; the receiver would have said so, but be safe.
    engine.cache().Release(received.pages);
    return;
  }
  const RequestId id = handover->second;
  handovers_.erase(handover);
  Leg& leg = legs_.at(id);
  leg.awaits_kv = false;
  SequenceRequest request = ToSequenceRequest(leg.start, leg.started);
  request.tokens.push_back(received.first_token);
  request.format_job = std::move(leg.format_job);
  const int64_t session = leg.session;
  if (absl::Status status = engine.AddWithKv(std::move(request), received.pages); !status.ok()) {
    engine.cache().Release(received.pages);
    legs_.erase(id);
    metrics_.CountLeg("failed");
    SendOne(session, {.id = id, .error = status});
    return;
  }
  SendOne(session, {.id = id, .taken_over = true});
}

void DecodeWorker::FailWaiting(HandoverId handover, const absl::Status& error) {
  auto entry = handovers_.find(handover);
  if (entry == handovers_.end()) return;
  const RequestId id = entry->second;
  handovers_.erase(entry);
  const int64_t session = legs_.at(id).session;
  legs_.erase(id);
  metrics_.CountLeg("failed");
  SendOne(session, {.id = id, .error = error});
}

void DecodeWorker::OnPeerUp(const HelloMessage& hello) {
  receiver_.OnPeerUp(hello.incarnation, hello.worker_id, hello.layout, hello.checksums);
}

void DecodeWorker::OnPeerLost(Incarnation peer, bool writes_over) {
  absl::Status error = MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerLost,
                                 "the link to the prefill worker was lost before the KV was complete");
  for (HandoverId handover : receiver_.OnPeerLost(peer, writes_over)) FailWaiting(handover, error);
  receiver_.RetryWaiting(clock_.Now());
  SendPeerMessages();
}

void DecodeWorker::OnWritesOver(Incarnation peer) {
  receiver_.OnWritesOver(peer);
  receiver_.RetryWaiting(clock_.Now());
  SendPeerMessages();
}

void DecodeWorker::OnTurn() {
  const absl::Time now = clock_.Now();
  std::vector<HandoverId> expired;
  for (const auto& [handover, id] : handovers_) {
    if (const Leg& leg = legs_.at(id); leg.started + leg.start.remaining <= now) expired.push_back(handover);
  }
  for (HandoverId handover : expired) {
    receiver_.Cancel(handover, "deadline passed");
    FailWaiting(handover, absl::DeadlineExceededError("deadline passed before the KV arrived"));
  }
  if (receiver_.num_waiting() > 0 || !expired.empty()) {
    receiver_.RetryWaiting(now);
    SendPeerMessages();
  }
}

void DecodeWorker::SendPeerMessages() {
  for (auto& [peer, message] : receiver_.TakeMessages()) send_to_peer_(peer, std::move(message));
}

}  // namespace tandem
