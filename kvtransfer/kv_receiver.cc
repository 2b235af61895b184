#include "kvtransfer/kv_receiver.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvtransfer/page_sums.h"

namespace tandem {

void KvReceiver::OnPeerUp(Incarnation peer, const std::string& worker_id, const KvLayout& layout, bool checksums) {
  peers_[peer] = {worker_id, layout, checksums};
}

std::vector<HandoverId> KvReceiver::OnPeerLost(Incarnation peer, bool writes_over) {
  std::vector<HandoverId> hit;
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    if (waiting.peer == peer) hit.push_back(waiting.offer.handover);
    return waiting.peer == peer;
  });
  std::vector<PageIndex>& quarantined = quarantined_[peer];
  for (const auto& [handover, granted] : granted_) {
    if (granted.peer != peer) continue;
    hit.push_back(handover);
    if (!granted.aborting) {
      pages_.Free(granted.held);
      pages_.Quarantine(granted.pages);
    }
    quarantined.insert(quarantined.end(), granted.pages.begin(), granted.pages.end());
  }
  for (HandoverId handover : hit) {
    granted_.erase(handover);
    expected_.erase(handover);
  }
  peers_.erase(peer);
  if (quarantined.empty()) {
    quarantined_.erase(peer);
  } else if (writes_over) {
    OnWritesOver(peer);
  }
  return hit;
}

void KvReceiver::OnWritesOver(Incarnation peer) {
  auto entry = quarantined_.find(peer);
  if (entry == quarantined_.end()) return;
  pages_.Free(entry->second);
  quarantined_.erase(entry);
}

bool KvReceiver::IsFenced(Incarnation peer) const { return quarantined_.contains(peer); }

void KvReceiver::Expect(HandoverId handover, std::vector<TokenId> tokens) { expected_[handover] = std::move(tokens); }

void KvReceiver::Cancel(HandoverId handover, const std::string& reason) {
  expected_.erase(handover);
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    if (waiting.offer.handover != handover) return false;
    Refuse(waiting.peer, handover, reason);
    return true;
  });
  auto entry = granted_.find(handover);
  if (entry != granted_.end() && !entry->second.aborting) AbortGranted(handover, reason, ErrorReason::kUnknown);
}

void KvReceiver::AbortGranted(HandoverId handover, const std::string& reason, ErrorReason error_reason) {
  Granted& granted = granted_.at(handover);
  granted.aborting = true;
  pages_.Free(granted.held);
  granted.held.clear();
  pages_.Quarantine(granted.pages);
  messages_.emplace_back(granted.peer, AbortMessage{handover, granted.epoch, reason, error_reason});
  ++counters_.aborts;
}

void KvReceiver::OnOffer(Incarnation peer, OfferMessage offer, absl::Time now) {
  const HandoverId handover = offer.handover;
  bool waits = std::any_of(waiting_.begin(), waiting_.end(),
                           [&](const Waiting& waiting) { return waiting.offer.handover == handover; });
  if (!peers_.contains(peer) || granted_.contains(handover) || waits) {
    ++counters_.ignored_messages;
    return;
  }
  waiting_.push_back({peer, std::move(offer), now});
  RetryWaiting(now);
}

void KvReceiver::RetryWaiting(absl::Time now) {
  // Offers are granted in order; one that lacks pages holds up the later ones, or it might never
  // get any.
  bool short_of_pages = false;
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    auto expected = expected_.find(waiting.offer.handover);
    if (expected != expected_.end() && expected->second != waiting.offer.tokens) {
      Refuse(waiting.peer, waiting.offer.handover, "the decode leg has other tokens");
      return true;
    }
    if (expected != expected_.end() && !short_of_pages) {
      if (TryGrant(waiting)) return true;
      short_of_pages = true;
    }
    if (now - waiting.since < options_.offer_wait) return false;
    if (expected != expected_.end()) {
      Refuse(waiting.peer, waiting.offer.handover, "too few KV pages", ErrorReason::kPoolExhausted);
    } else {
      Refuse(waiting.peer, waiting.offer.handover, "the router has not started the decode leg");
    }
    return true;
  });
}

int KvReceiver::num_granted() const {
  return static_cast<int>(
      std::count_if(granted_.begin(), granted_.end(), [](const auto& entry) { return !entry.second.aborting; }));
}

bool KvReceiver::TryGrant(const Waiting& waiting) {
  const OfferMessage& offer = waiting.offer;
  const int num_tokens = static_cast<int>(offer.tokens.size());
  const int num_pages = (num_tokens + layout_.page_tokens - 1) / layout_.page_tokens;
  if (num_tokens == 0 || num_pages > layout_.num_pages) {
    Refuse(waiting.peer, offer.handover,
           absl::StrCat(num_tokens, " tokens never fit the pool of ", layout_.num_pages, " pages"),
           ErrorReason::kRequestTooLong);
    return true;
  }
  if (!pages_.HasRoom(num_granted())) return false;
  Granted granted{.peer = waiting.peer, .num_tokens = num_tokens};
  granted.held = pages_.AcquireHeld(offer.tokens);
  const int first_missing = static_cast<int>(granted.held.size());
  std::optional<std::vector<PageIndex>> pages = pages_.AllocateGranted(num_pages - first_missing);
  if (!pages.has_value()) {
    pages_.Free(granted.held);
    return false;
  }
  granted.pages = *std::move(pages);
  granted.epoch = TransferEpoch(next_epoch_++);
  messages_.emplace_back(waiting.peer, GrantMessage{offer.handover, granted.epoch, granted.pages, first_missing});
  granted_[offer.handover] = std::move(granted);
  ++counters_.grants;
  return true;
}

void KvReceiver::Refuse(Incarnation peer, HandoverId handover, const std::string& reason, ErrorReason error_reason) {
  messages_.emplace_back(peer, RefuseMessage{handover, reason, error_reason});
  expected_.erase(handover);
  ++counters_.refusals;
}

KvReceiver::Granted* KvReceiver::FindCurrent(Incarnation peer, HandoverId handover, TransferEpoch epoch) {
  auto entry = granted_.find(handover);
  if (entry == granted_.end() || entry->second.peer != peer || entry->second.epoch != epoch) {
    ++counters_.ignored_messages;
    return nullptr;
  }
  return &entry->second;
}

void KvReceiver::ReleaseGranted(HandoverId handover) {
  Granted& granted = granted_.at(handover);
  pages_.Free(granted.held);
  pages_.Free(granted.pages);
  granted_.erase(handover);
  expected_.erase(handover);
}

void KvReceiver::OnAbort(Incarnation peer, const AbortMessage& abort) {
  // The peer sends Abort when no write of it is in flight, so the pages are free at once.
  bool waited = false;
  std::erase_if(waiting_, [&](const Waiting& waiting) {
    bool matches = waiting.peer == peer && waiting.offer.handover == abort.handover;
    waited |= matches;
    return matches;
  });
  auto entry = granted_.find(abort.handover);
  bool current = entry != granted_.end() && entry->second.peer == peer &&
                 (!abort.epoch.is_set() || entry->second.epoch == abort.epoch);
  if (!current && !waited) {
    ++counters_.ignored_messages;
    return;
  }
  if (current) ReleaseGranted(abort.handover);
  expected_.erase(abort.handover);
  messages_.emplace_back(peer, AbortDoneMessage{abort.handover, abort.epoch});
  ++counters_.aborts;
}

void KvReceiver::OnAbortDone(Incarnation peer, const AbortDoneMessage& done) {
  auto entry = granted_.find(done.handover);
  // A sender that never saw the grant answers without an epoch: it cannot have written either.
  bool current = entry != granted_.end() && entry->second.peer == peer && entry->second.aborting &&
                 (!done.epoch.is_set() || entry->second.epoch == done.epoch);
  if (!current) {
    ++counters_.ignored_messages;
    return;
  }
  ReleaseGranted(done.handover);
}

absl::StatusOr<bool> KvReceiver::ChecksumsMatch(const Granted& granted, const CommitMessage& commit) const {
  const Peer& peer = peers_.at(granted.peer);
  if (!peer.checksums) return true;
  std::vector<PageIndex> placeholders((granted.num_tokens + peer.layout.page_tokens - 1) / peer.layout.page_tokens, 0);
  const int first_missing = static_cast<int>(granted.held.size());
  const PageRuns written =
      CutAtPages(PlanTransfer(peer.layout, {placeholders}, layout_, {granted.pages, first_missing},
                              {first_missing * layout_.page_tokens, granted.num_tokens}, {0, layout_.num_layers}),
                 layout_.page_bytes(), granted.pages);
  PageSums sums(granted.pages.size());
  RETURN_IF_ERROR(memory_.AddSums(pool_, PoolSide::kDestination, written.runs, written.page_of_run, sums));
  const std::vector<uint32_t> ours = FoldSums(sums);
  if (ours == commit.page_checksums) return true;
  for (size_t i = 0; i < ours.size() && i < commit.page_checksums.size(); ++i) {
    if (ours[i] == commit.page_checksums[i]) continue;
    LogError("KV page arrived damaged", {{"peer", peer.worker_id},
                                         {"handover", commit.handover.value()},
                                         {"page", granted.pages[i]},
                                         {"sent_checksum", commit.page_checksums[i]},
                                         {"found_checksum", ours[i]}});
  }
  return false;
}

absl::StatusOr<std::optional<ReceivedKv>> KvReceiver::OnCommit(Incarnation peer, const CommitMessage& commit) {
  Granted* granted = FindCurrent(peer, commit.handover, commit.epoch);
  if (granted == nullptr) return std::nullopt;
  if (granted->aborting) {  // It crossed our Abort; the AbortDone that follows frees the pages.
    ++counters_.ignored_messages;
    return std::nullopt;
  }
  const absl::StatusOr<bool> matches = ChecksumsMatch(*granted, commit);
  if (!matches.ok()) {
    LogError("KV pages cannot be verified",
             {{"handover", commit.handover.value()}, {"cause", matches.status().message()}});
    AbortGranted(commit.handover, "decode cannot verify the KV", ErrorReason::kUnknown);
    expected_.erase(commit.handover);
    return matches.status();
  }
  if (commit.pages_written != granted->pages.size() || !*matches) {
    ++counters_.checksum_failures;
    AbortGranted(commit.handover, "other bytes arrived than were sent", ErrorReason::kChecksumMismatch);
    expected_.erase(commit.handover);
    return MakeError(absl::StatusCode::kDataLoss, ErrorReason::kChecksumMismatch, "KV arrived damaged");
  }
  pages_.MarkCommitted(granted->pages);
  ReceivedKv received{
      .handover = commit.handover, .pages = std::move(granted->held), .first_token = commit.first_token};
  received.pages.insert(received.pages.end(), granted->pages.begin(), granted->pages.end());
  messages_.emplace_back(peer, AckMessage{commit.handover, commit.epoch});
  granted_.erase(commit.handover);
  expected_.erase(commit.handover);
  ++counters_.commits;
  return received;
}

}  // namespace tandem
