#include "kvtransfer/kv_sender.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem {

void KvSender::Start(HandoverId id, std::vector<TokenId> tokens, std::vector<PageIndex> pages) {
  messages_.push_back(OfferMessage{id, tokens});
  Handover& handover = handovers_[id];
  handover.tokens = std::move(tokens);
  handover.pages = std::move(pages);
}

void KvSender::LayersReady(HandoverId id, IndexRange tokens, IndexRange layers, absl::Time now,
                           std::shared_ptr<const SourceEvent> ready) {
  auto entry = handovers_.find(id);
  if (entry == handovers_.end() || entry->second.ending != Handover::Ending::kNone) return;
  Handover& handover = entry->second;
  if (handover.grant.has_value()) {
    Push(id, handover, {tokens, layers, std::move(ready)}, now);
  } else {
    handover.ready.push_back({tokens, layers, std::move(ready)});
  }
}

void KvSender::DropPushes(HandoverId id) {
  std::erase_if(pushes_, [&](const PushOrder& push) { return push.handover == id; });
  handovers_.at(id).pending = 0;
}

void KvSender::Push(HandoverId id, Handover& handover, const Ready& ready, absl::Time now) {
  const GrantMessage& grant = *handover.grant;
  IndexRange tokens = ready.tokens;
  tokens.begin = std::max(tokens.begin, grant.first_missing_page * destination_.page_tokens);
  WriteOrder write{.source_base = pool_, .sums = handover.sums};
  write.runs = PlanTransfer(source_, {handover.pages}, destination_, {grant.pages, grant.first_missing_page}, tokens,
                            ready.layers);
  if (write.runs.empty()) return;
  for (const CopyRun& run : write.runs) handover.bytes += run.bytes;
  if (write.sums != nullptr) {
    PageRuns cut = CutAtPages(write.runs, destination_.page_bytes(), grant.pages);
    write.runs = std::move(cut.runs);
    write.page_of_run = std::move(cut.page_of_run);
  }
  handover.first_push = std::min(handover.first_push, now);
  ++handover.pending;
  pushes_.push_back({id, std::move(write), ready.event});
}

void KvSender::Finish(HandoverId id, TokenId first_token) {
  auto entry = handovers_.find(id);
  if (entry == handovers_.end()) return;
  entry->second.first_token = first_token;
  MoveOn(id);
}

void KvSender::Cancel(HandoverId id, const std::string& reason) {
  auto entry = handovers_.find(id);
  if (entry == handovers_.end() || entry->second.ending != Handover::Ending::kNone) return;
  entry->second.ending = Handover::Ending::kByUs;
  entry->second.end_reason = reason;
  DropPushes(id);
  MoveOn(id);
}

void KvSender::OnGrant(const GrantMessage& grant, absl::Time now) {
  auto entry = handovers_.find(grant.handover);
  if (entry == handovers_.end() || entry->second.grant.has_value() || entry->second.ending != Handover::Ending::kNone) {
    ++ignored_messages_;
    return;
  }
  Handover& handover = entry->second;
  // The grant comes from another process: it must fit before anything is written by it.
  const int num_pages =
      (static_cast<int>(handover.tokens.size()) + destination_.page_tokens - 1) / destination_.page_tokens;
  bool fits = grant.first_missing_page >= 0 && grant.first_missing_page <= num_pages &&
              grant.first_missing_page + static_cast<int>(grant.pages.size()) == num_pages;
  for (PageIndex page : grant.pages) fits &= page >= 0 && page < destination_.num_pages;
  if (!fits) {
    Cancel(grant.handover, absl::StrCat("grant of ", grant.pages.size(), " pages from page ", grant.first_missing_page,
                                        " on does not fit ", handover.tokens.size(), " tokens"));
    return;
  }
  handover.grant = grant;
  if (checksums_) handover.sums = std::make_shared<PageSums>(grant.pages.size());
  for (const Ready& ready : std::exchange(handover.ready, {})) Push(grant.handover, handover, ready, now);
  MoveOn(grant.handover);
}

void KvSender::OnRefuse(const RefuseMessage& refuse) {
  if (!handovers_.contains(refuse.handover)) {
    ++ignored_messages_;
    return;
  }
  End(refuse.handover, HandoverOutcome::Kind::kRefused, refuse.reason, refuse.error_reason);
}

KvSender::Handover* KvSender::FindCurrent(HandoverId id, TransferEpoch epoch) {
  auto entry = handovers_.find(id);
  if (entry == handovers_.end() || !entry->second.grant.has_value() || entry->second.grant->epoch != epoch) {
    ++ignored_messages_;
    return nullptr;
  }
  return &entry->second;
}

void KvSender::OnAck(const AckMessage& ack, absl::Time now) {
  Handover* handover = FindCurrent(ack.handover, ack.epoch);
  if (handover == nullptr) return;
  if (!handover->committed) {
    ++ignored_messages_;
    return;
  }
  End(ack.handover, HandoverOutcome::Kind::kAcked, "", ErrorReason::kUnknown,
      now - std::min(now, handover->first_push));
}

void KvSender::OnAbort(const AbortMessage& abort) {
  auto entry = handovers_.find(abort.handover);
  if (entry == handovers_.end()) {
    // Ended here already: nothing of it is in flight, and the peer waits for that word.
    messages_.push_back(AbortDoneMessage{abort.handover, abort.epoch});
    return;
  }
  entry->second.ending = Handover::Ending::kByPeer;
  entry->second.end_reason = abort.reason;
  entry->second.end_error = abort.error_reason;
  DropPushes(abort.handover);
  MoveOn(abort.handover);
}

void KvSender::OnAbortDone(const AbortDoneMessage&) {
  // Decode has freed its pages. Ours ended when the Abort was sent.
}

void KvSender::OnFlushed() {
  std::vector<HandoverId> flushed;
  for (auto& [id, handover] : handovers_) {
    if (handover.unflushed && handover.pending == 0) flushed.push_back(id);
  }
  for (HandoverId id : flushed) {
    handovers_[id].unflushed = false;
    MoveOn(id);
  }
}

void KvSender::MoveOn(HandoverId id) {
  Handover& handover = handovers_.at(id);
  if (handover.unflushed || handover.pending > 0) return;
  switch (handover.ending) {
    case Handover::Ending::kByUs:
      messages_.push_back(
          AbortMessage{id, handover.grant.has_value() ? handover.grant->epoch : TransferEpoch(), handover.end_reason});
      End(id, HandoverOutcome::Kind::kAborted, handover.end_reason);
      return;
    case Handover::Ending::kByPeer:
      messages_.push_back(AbortDoneMessage{id, handover.grant.has_value() ? handover.grant->epoch : TransferEpoch()});
      End(id, HandoverOutcome::Kind::kAborted, handover.end_reason, handover.end_error);
      return;
    case Handover::Ending::kNone:
      break;
  }
  if (handover.committed || !handover.grant.has_value() || !handover.first_token.has_value()) return;
  handover.committed = true;
  CommitMessage commit{.handover = id,
                       .epoch = handover.grant->epoch,
                       .pages_written = static_cast<int>(handover.grant->pages.size()),
                       .first_token = *handover.first_token};
  if (checksums_) commit.page_checksums = FoldSums(*handover.sums);
  messages_.push_back(std::move(commit));
}

void KvSender::End(HandoverId id, HandoverOutcome::Kind kind, const std::string& reason, ErrorReason error_reason,
                   absl::Duration transfer_time) {
  auto entry = handovers_.find(id);
  DropPushes(id);
  // A copy: the reason may be the hand-over's own.
  HandoverOutcome outcome{id, kind, reason, error_reason, transfer_time, entry->second.bytes};
  handovers_.erase(entry);
  outcomes_.push_back(std::move(outcome));
}

void KvSender::LoseAll(const std::string& reason) {
  std::vector<HandoverId> ids;
  for (const auto& [id, handover] : handovers_) ids.push_back(id);
  for (HandoverId id : ids) End(id, HandoverOutcome::Kind::kLost, reason, ErrorReason::kLinkDown);
  messages_.clear();
  pushes_.clear();
}

absl::StatusOr<std::vector<PushOrder>> KvSender::TakePushes(int64_t max_bytes) {
  std::vector<PushOrder> taken;
  while (!pushes_.empty() && max_bytes > 0) {
    PushOrder& push = pushes_.front();
    if (push.ready != nullptr) {
      ASSIGN_OR_RETURN(const bool ready, push.ready->PollReady());
      if (!ready) break;
    }
    Handover& handover = handovers_.at(push.handover);
    --handover.pending;
    handover.unflushed = true;
    for (const CopyRun& run : push.write.runs) max_bytes -= run.bytes;
    taken.push_back(std::move(push));
    pushes_.pop_front();
  }
  return taken;
}

bool KvSender::WantsFlush() const {
  return std::any_of(handovers_.begin(), handovers_.end(), [](const auto& entry) {
    const Handover& handover = entry.second;
    return handover.unflushed && handover.pending == 0 &&
           (handover.first_token.has_value() || handover.ending != Handover::Ending::kNone);
  });
}

}  // namespace tandem
