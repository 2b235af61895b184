#include "engine/step_scheduler.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace tandem {

void StepScheduler::InsertRunning(Sequence* sequence) {
  const auto before = [](const Sequence* a, const Sequence* b) {
    return std::tuple(-a->request.place.priority, a->arrival, a->request.id) <
           std::tuple(-b->request.place.priority, b->arrival, b->request.id);
  };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, before), sequence);
}

void StepScheduler::InsertWaiting(Sequence* sequence) {
  const auto before = [](const Sequence* a, const Sequence* b) {
    return std::tuple(a->request.place, a->arrival, a->request.id) <
           std::tuple(b->request.place, b->arrival, b->request.id);
  };
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence, before), sequence);
}

void StepScheduler::Add(std::unique_ptr<Sequence> sequence) {
  InsertWaiting(sequence.get());
  sequences_[sequence->request.id] = std::move(sequence);
}

void StepScheduler::AddRunning(std::unique_ptr<Sequence> sequence) {
  InsertRunning(sequence.get());
  sequences_[sequence->request.id] = std::move(sequence);
}

std::unique_ptr<Sequence> StepScheduler::Remove(RequestId id) {
  auto entry = sequences_.find(id);
  if (entry == sequences_.end()) return nullptr;
  std::unique_ptr<Sequence> sequence = std::move(entry->second);
  sequences_.erase(entry);
  std::erase(running_, sequence.get());
  std::erase(waiting_, sequence.get());
  return sequence;
}

Sequence* StepScheduler::Find(RequestId id) const {
  auto entry = sequences_.find(id);
  return entry == sequences_.end() ? nullptr : entry->second.get();
}

std::vector<RequestId> StepScheduler::Expired(absl::Time now) const {
  std::vector<RequestId> expired;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->request.deadline <= now) expired.push_back(id);
  }
  return expired;
}

int64_t StepScheduler::waiting_tokens() const {
  int64_t tokens = 0;
  for (const Sequence* sequence : waiting_) tokens += sequence->num_tokens();
  for (const Sequence* sequence : running_)
    tokens += std::max(0, sequence->num_tokens() - sequence->computed_tokens - 1);
  return tokens;
}

void StepScheduler::Preempt(Sequence* sequence) {
  cache_.Release(sequence->pages);
  sequence->pages.clear();
  sequence->computed_tokens = 0;
  sequence->published_pages = 0;
  sequence->page_chain = 0;
  std::erase(running_, sequence);
  InsertWaiting(sequence);
  is_short_ = true;
  ++preemptions_;
}

bool StepScheduler::GrowPages(Sequence* sequence, int tokens) {
  int missing = cache_.PagesFor(tokens) - static_cast<int>(sequence->pages.size());
  while (missing > 0) {
    if (auto pages = cache_.Allocate(missing); pages.has_value()) {
      sequence->pages.insert(sequence->pages.end(), pages->begin(), pages->end());
      return true;
    }
    // Never one whose KV is being pushed: its pages must not change hands. Such sequences grow no
    // pages, so the loop ends.
    auto victim_at = std::find_if(running_.rbegin(), running_.rend(),
                                  [](const Sequence* candidate) { return !candidate->request.hold_after_first_token; });
    Sequence* victim = *victim_at;
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

bool StepScheduler::TryAdmit(Sequence* sequence, absl::Time now) {
  const std::vector<TokenId>& tokens = sequence->tokens();
  KvCache::PrefixSize prefix = cache_.FindPrefix(tokens);
  int missing = cache_.PagesFor(tokens.size()) - prefix.pages;
  // One page of headroom for each running sequence, so that a newcomer is not preempted at once;
  // none when nothing else could ever free pages.
  int headroom = num_running();
  if (cache_.pool().available() - prefix.cached < missing + headroom) return false;
  sequence->pages = cache_.AcquirePrefix(tokens);
  sequence->published_pages = prefix.pages;
  sequence->computed_tokens = prefix.pages * cache_.page_tokens();
  std::vector<PageIndex> fresh = *cache_.Allocate(missing);
  sequence->pages.insert(sequence->pages.end(), fresh.begin(), fresh.end());
  if (sequence->first_scheduled == absl::InfinitePast()) {
    sequence->first_scheduled = now;
    sequence->cached_tokens = sequence->computed_tokens;
  }
  return true;
}

std::vector<StepItem> StepScheduler::Plan(absl::Time now) {
  is_short_ = false;
  std::vector<StepItem> items;
  int budget = options_.max_step_tokens;
  // A step has at most max_running rows of logits, and hand-overs that arrive together may be a few more than that.
  const auto is_full = [&] { return budget == 0 || items.size() >= static_cast<size_t>(options_.max_running); };
  // Decoding sequences, one token each. Preemption shortens running_ from the back while this loop
  // runs.
  for (size_t i = 0; i < running_.size() && !is_full();) {
    Sequence* sequence = running_[i];
    if (sequence->is_closing || sequence->awaits_constraint ||
        sequence->num_tokens() - sequence->computed_tokens != 1) {
      ++i;
      continue;
    }
    if (!GrowPages(sequence, sequence->num_tokens())) break;  // It was the last one.
    items.push_back({sequence, 1});
    --budget;
    ++i;
  }
  // Preemption may have hit a sequence that was planned before it.
  std::erase_if(items, [](const StepItem& item) { return item.sequence->pages.empty(); });
  if (!items.empty()) budget = std::min(budget, options_.max_prefill_beside_decode);
  // Prefills that were begun, then new ones.
  for (Sequence* sequence : running_) {
    int remaining = sequence->num_tokens() - sequence->computed_tokens;
    if (remaining <= 1 || is_full()) continue;
    int chunk = std::min(remaining, budget);
    items.push_back({sequence, chunk});
    budget -= chunk;
  }
  for (size_t next = 0; next < waiting_.size() && !is_full() && num_running() < options_.max_running;) {
    Sequence* sequence = waiting_[next];
    if (sequence->awaits_constraint) {  // It may take seconds, in which it needs neither place nor pages.
      ++next;
      continue;
    }
    if (!TryAdmit(sequence, now)) {  // Not passed by a shorter one, or it might wait for ever.
      is_short_ = true;
      break;
    }
    waiting_.erase(waiting_.begin() + next);
    InsertRunning(sequence);
    int chunk = std::min(sequence->num_tokens() - sequence->computed_tokens, budget);
    items.push_back({sequence, chunk});
    budget -= chunk;
  }
  is_short_ |= num_running() >= options_.max_running;
  return items;
}

}  // namespace tandem
