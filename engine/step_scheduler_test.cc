#include "engine/step_scheduler.h"

#include <memory>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr absl::Time kNow = absl::UnixEpoch();

class StepSchedulerTest : public testing::Test {
 protected:
  void Make(int pages, int max_step_tokens = 8, int max_running = 8, int max_prefill_beside_decode = 100) {
    cache_ = std::make_unique<KvCache>(pages, /*page_tokens=*/2);
    scheduler_ = std::make_unique<StepScheduler>(
        StepScheduler::Options{max_step_tokens, max_running, max_prefill_beside_decode}, *cache_);
  }
  Sequence* Add(uint64_t id, int tokens, int priority = 0, int first_token = 0,
                absl::Time due = absl::InfiniteFuture()) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request.id = RequestId(id);
    for (int i = 0; i < tokens; ++i)
      sequence->request.tokens.push_back(first_token + static_cast<TokenId>(id * 1000 + i));
    sequence->request.prompt_tokens = tokens;
    sequence->request.place = {priority, due};
    sequence->arrival = kNow + absl::Seconds(arrivals_++);
    Sequence* raw = sequence.get();
    scheduler_->Add(std::move(sequence));
    return raw;
  }
  // Plans a step and pretends that it ran: returns (id, tokens) of each item.
  std::vector<std::pair<uint64_t, int>> Step() {
    std::vector<std::pair<uint64_t, int>> done;
    for (const StepItem& item : scheduler_->Plan(kNow)) {
      Sequence& sequence = *item.sequence;
      done.emplace_back(sequence.request.id.value(), item.num_tokens);
      sequence.computed_tokens += item.num_tokens;
      EXPECT_GE(static_cast<int>(sequence.pages.size()) * 2, sequence.computed_tokens);
      if (sequence.computed_tokens == sequence.num_tokens()) sequence.tokens().push_back(1);
    }
    return done;
  }
  using Item = std::pair<uint64_t, int>;

  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<StepScheduler> scheduler_;
  int arrivals_ = 0;
};

TEST_F(StepSchedulerTest, CutsPromptsIntoChunksOfTheBudget) {
  Make(/*pages=*/32);
  Add(1, 20);
  EXPECT_THAT(Step(), ElementsAre(Item{1, 8}));
  EXPECT_THAT(Step(), ElementsAre(Item{1, 8}));
  EXPECT_THAT(Step(), ElementsAre(Item{1, 4}));
  EXPECT_THAT(Step(), ElementsAre(Item{1, 1}));
}

TEST_F(StepSchedulerTest, DecodesBeforeItPrefills) {
  Make(32);
  Add(1, 3);
  Step();
  Add(2, 20);
  EXPECT_THAT(Step(), ElementsAre(Item{1, 1}, Item{2, 7}));
}

TEST_F(StepSchedulerTest, ChunksAreShorterWhileOthersDecode) {
  Make(32, /*max_step_tokens=*/8, /*max_running=*/8, /*max_prefill_beside_decode=*/3);
  Add(1, 10);
  EXPECT_THAT(Step(), ElementsAre(Item{1, 8}));  // None decodes: none waits for it.
  EXPECT_THAT(Step(), ElementsAre(Item{1, 2}));
  Add(2, 5);
  Add(3, 5);
  EXPECT_THAT(Step(), ElementsAre(Item{1, 1}, Item{2, 3}));
  EXPECT_THAT(Step(), ElementsAre(Item{1, 1}, Item{2, 2}, Item{3, 1}));  // In all, not each.
}

TEST_F(StepSchedulerTest, IsShortWhenPagesOrPlacesAreMissingButNotOnlyTokensOfAStep) {
  Make(/*pages=*/16, /*max_step_tokens=*/4, /*max_running=*/2);
  Add(1, 10);
  Add(2, 10);
  Step();
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  EXPECT_FALSE(scheduler_->is_short());  // The second waits for its turn.
  Add(3, 10);
  for (int i = 0; i < 3; ++i) Step();
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  EXPECT_TRUE(scheduler_->is_short());  // Two run already.
  scheduler_->Remove(RequestId(3));
  EXPECT_FALSE(scheduler_->is_short());  // None waits any more.
}

TEST_F(StepSchedulerTest, IsShortWhileTheFirstInLineLacksPages) {
  Make(/*pages=*/8);
  Add(1, 8);
  Step();
  Add(2, 8);
  Step();
  EXPECT_TRUE(scheduler_->is_short());
}

TEST_F(StepSchedulerTest, HigherPriorityGoesFirstThenEarlierArrival) {
  Make(64, 4);
  Add(1, 4);
  Add(2, 4, /*priority=*/5);
  Add(3, 4, 5);
  EXPECT_THAT(Step(), ElementsAre(Item{2, 4}));
}

TEST_F(StepSchedulerTest, OfOnePriorityWhatIsDueSoonerGoesFirst) {
  Make(64, 4);
  Add(1, 4, /*priority=*/0, /*first_token=*/0, kNow + absl::Seconds(9));
  Add(2, 4, 0, 0, kNow + absl::Seconds(8));
  EXPECT_THAT(Step(), ElementsAre(Item{2, 4}));
}

// When its first token was wanted says nothing of what a sequence may lose when it has begun.
TEST_F(StepSchedulerTest, WhatRunsIsNotPreemptedForWhatIsDueSooner) {
  Make(/*pages=*/5);
  Add(1, 4, 0, 0, kNow + absl::Seconds(30));
  Step();
  Add(2, 2, 0, 0, kNow + absl::Seconds(1));
  Step();
  Step();  // Both want a page more, and there is one.
  Step();
  EXPECT_EQ(scheduler_->preemptions(), 1);
  EXPECT_FALSE(scheduler_->Find(RequestId(1))->pages.empty());
}

TEST_F(StepSchedulerTest, ALongPromptIsNotOvertakenForEver) {
  Make(/*pages=*/4);
  Add(1, 4);
  Step();
  Add(2, 6);  // Needs three pages; sequence 1 holds two of four.
  Add(3, 1);
  std::vector<Item> step = Step();
  EXPECT_THAT(step, ElementsAre(Item{1, 1}));
  EXPECT_EQ(scheduler_->num_waiting(), 2);
}

TEST_F(StepSchedulerTest, OneWhoseFormatIsCompiledIsPassedAndTakesNothing) {
  Make(/*pages=*/6, /*max_step_tokens=*/8, /*max_running=*/1);
  Sequence* formatted = Add(1, 4, /*priority=*/1);
  formatted->awaits_constraint = true;
  EXPECT_THAT(Step(), IsEmpty());
  EXPECT_EQ(cache_->pool().available(), 6);
  Add(2, 8);
  EXPECT_THAT(Step(), ElementsAre(Item{2, 8}));  // The only place and most of the pages are its.
  formatted->awaits_constraint = false;
  EXPECT_THAT(Step(), ElementsAre(Item{2, 1}));
  cache_->Release(scheduler_->Remove(RequestId(2))->pages);
  EXPECT_THAT(Step(), ElementsAre(Item{1, 4}));
}

TEST_F(StepSchedulerTest, BoundsRunningSequences) {
  Make(32, 32, /*max_running=*/2);
  for (int i = 1; i <= 4; ++i) Add(i, 2);
  EXPECT_THAT(Step(), SizeIs(2));
}

TEST_F(StepSchedulerTest, PlansNoMoreRowsThanMayRunWhenMoreHandoversCome) {
  Make(32, 32, /*max_running=*/2);
  for (uint64_t id = 1; id <= 4; ++id) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request.id = RequestId(id);
    sequence->request.tokens = {1, 2};
    sequence->request.prompt_tokens = 2;
    sequence->computed_tokens = 1;
    sequence->pages = *cache_->Allocate(1);
    scheduler_->AddRunning(std::move(sequence));
  }
  Add(9, 2);
  EXPECT_THAT(Step(), SizeIs(2));
}

TEST_F(StepSchedulerTest, APreemptedSequenceIsNotPlannedTwice) {
  Make(/*pages=*/3, 16);
  Add(1, 4);
  Add(2, 2);
  for (int i = 0; i < 6; ++i) {
    std::vector<uint64_t> planned;
    for (const Item& item : Step()) planned.push_back(item.first);
    EXPECT_THAT(planned,
                testing::WhenSorted(testing::UnorderedElementsAreArray(std::set(planned.begin(), planned.end()))));
  }
}

TEST_F(StepSchedulerTest, PreemptsTheLastWhenPagesRunOutAndRecomputesIt) {
  Make(/*pages=*/5);
  Add(1, 4);
  Add(2, 2);
  Step();
  while (scheduler_->preemptions() == 0) Step();
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  Sequence* victim = scheduler_->Find(RequestId(2));
  EXPECT_THAT(victim->pages, IsEmpty());
  EXPECT_EQ(victim->computed_tokens, 0);
  EXPECT_GT(victim->num_tokens(), 2);  // Its tokens stay.
}

TEST_F(StepSchedulerTest, NeverPreemptsASequenceWhosePagesAreBeingPushed) {
  Make(/*pages=*/5);
  Sequence* decoding = Add(1, 2);
  Sequence* held = Add(2, 4);
  held->request.hold_after_first_token = true;
  Step();
  for (int i = 0; i < 8 && !decoding->pages.empty(); ++i) {
    decoding->tokens().resize(decoding->computed_tokens + 1);
    Step();
  }
  EXPECT_FALSE(held->pages.empty());
  EXPECT_TRUE(decoding->pages.empty());
}

TEST_F(StepSchedulerTest, SharesACachedPrefix) {
  Make(32, 64);
  Sequence* first = Add(1, 9);
  Step();
  cache_->Publish(absl::MakeConstSpan(first->tokens()).subspan(0, 9), first->pages);
  auto second = std::make_unique<Sequence>();
  second->request.id = RequestId(2);
  second->request.tokens.assign(first->tokens().begin(), first->tokens().begin() + 9);
  second->request.tokens.push_back(77);
  second->request.prompt_tokens = 10;
  Sequence* raw = second.get();
  scheduler_->Add(std::move(second));
  EXPECT_THAT(Step(), ElementsAre(Item{1, 1}, Item{2, 2}));
  EXPECT_EQ(raw->cached_tokens, 8);
  EXPECT_EQ(raw->pages[0], first->pages[0]);
}

TEST_F(StepSchedulerTest, FindsExpiredSequences) {
  Make(8);
  Add(1, 2)->request.deadline = kNow + absl::Seconds(1);
  Add(2, 2);
  EXPECT_THAT(scheduler_->Expired(kNow), IsEmpty());
  EXPECT_THAT(scheduler_->Expired(kNow + absl::Seconds(1)), ElementsAre(RequestId(1)));
}

TEST_F(StepSchedulerTest, RemoveReturnsTheSequenceWithItsPages) {
  Make(8);
  Add(1, 4);
  Step();
  std::unique_ptr<Sequence> removed = scheduler_->Remove(RequestId(1));
  EXPECT_THAT(removed->pages, SizeIs(2));
  EXPECT_EQ(scheduler_->Remove(RequestId(1)), nullptr);
  EXPECT_TRUE(scheduler_->empty());
}

}  // namespace
}  // namespace tandem
