#include "engine/rank_group.h"

#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "engine/step_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;

// Of this test and process, so that tests beside it do not meet it.
RankGroup::Options Options(int rank, int size) {
  RankGroup::Options options;
  options.name =
      absl::StrCat("tandem-test-", getpid(), "-", testing::UnitTest::GetInstance()->current_test_info()->name());
  options.rank = rank;
  options.size = size;
  options.on_lost = [](const absl::Status& cause) { ADD_FAILURE() << cause; };
  return options;
}

// Runs `body` as every rank of a group, each on a thread.
template <typename Body>
void RunRanks(int size, const Body& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, options = Options(rank, size)] {
      absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::Join(options);
      ASSERT_THAT(group, IsOk());
      body(**group);
      if (rank == 0) (*group)->SayFarewell();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(RankGroupTest, EveryRankGetsAllMessagesInOrderOfRanks) {
  RunRanks(4, [](RankGroup& group) {
    for (int round = 0; round < 3; ++round) {
      // Of several MB, more than a socket holds.
      const auto message = [&](int rank) {
        return std::string((rank + 1) << 20, static_cast<char>('a' + rank + round));
      };
      ASSERT_OK_AND_ASSIGN(auto all, group.Exchange(message(group.rank())));
      EXPECT_THAT(all, ElementsAre(message(0), message(1), message(2), message(3)));
    }
    if (group.rank() > 0) {
      EXPECT_THAT(group.Receive(), IsOkAndHolds(std::nullopt));
    }
  });
}

TEST(RankGroupTest, OthersGetWhatRankZeroSaysAndItsEnd) {
  RunRanks(3, [](RankGroup& group) {
    if (group.rank() == 0) {
      EXPECT_THAT(group.Broadcast("first"), IsOk());
      EXPECT_THAT(group.Broadcast(""), IsOk());
      return;
    }
    EXPECT_THAT(group.Receive(), IsOkAndHolds(Optional(std::string("first"))));
    EXPECT_THAT(group.Receive(), IsOkAndHolds(Optional(std::string())));
    EXPECT_THAT(group.Receive(), IsOkAndHolds(std::nullopt));
  });
}

TEST(RankGroupTest, MissingRanksAreNamed) {
  RankGroup::Options options = Options(0, 3);
  options.timeout = absl::Milliseconds(20);
  EXPECT_THAT(RankGroup::Join(options), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("1, 2")));
  options.rank = 2;
  EXPECT_THAT(RankGroup::Join(options), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 0")));
}

TEST(RankGroupTest, ARankThatIsThereOrOfAnotherGroupIsRefused) {
  absl::Notification is_first_in, is_checked;
  std::thread zero([options = Options(0, 3)] {
    absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::Join(options);
    ASSERT_THAT(group, IsOk());
    (*group)->SayFarewell();
  });
  std::thread one([&, options = Options(1, 3)] {
    // Waits for rank 0 before the next one tries to be rank 1.
    absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::Join(options);
    ASSERT_THAT(group, IsOk());
    is_first_in.Notify();
    EXPECT_THAT((*group)->Receive(), IsOkAndHolds(std::nullopt));
  });
  is_first_in.WaitForNotification();
  EXPECT_THAT(RankGroup::Join(Options(1, 3)), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("rank 1")));
  EXPECT_THAT(RankGroup::Join(Options(2, 4)), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("3 ranks")));
  EXPECT_THAT(RankGroup::Join(Options(0, 3)), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("rank 0")));
  ASSERT_OK_AND_ASSIGN(auto two, RankGroup::Join(Options(2, 3)));
  EXPECT_THAT(two->Receive(), IsOkAndHolds(std::nullopt));
  two.reset();
  zero.join();
  one.join();
}

TEST(RankGroupTest, ALostRankIsToldWhileNobodyCalls) {
  absl::Notification is_told;
  RankGroup::Options first = Options(0, 2);
  first.on_lost = [&](const absl::Status& cause) {
    EXPECT_THAT(cause, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1")));
    is_told.Notify();
  };
  absl::StatusOr<std::unique_ptr<RankGroup>> zero;
  std::thread thread([&] { zero = RankGroup::Join(first); });
  ASSERT_OK_AND_ASSIGN(auto one, RankGroup::Join(Options(1, 2)));
  thread.join();
  ASSERT_THAT(zero, IsOk());
  one.reset();  // Before rank 0 has said that it ends.
  is_told.WaitForNotification();
  EXPECT_THAT((*zero)->Exchange("x"), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1")));
}

TEST(RankGroupTest, RankZeroThatEndsWithoutAFarewellIsLost) {
  absl::Notification is_told;
  RankGroup::Options second = Options(1, 2);
  second.on_lost = [&](const absl::Status& cause) {
    EXPECT_THAT(cause, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0")));
    is_told.Notify();
  };
  std::thread zero([options = Options(0, 2)] { EXPECT_THAT(RankGroup::Join(options), IsOk()); });
  ASSERT_OK_AND_ASSIGN(auto one, RankGroup::Join(second));
  zero.join();
  is_told.WaitForNotification();
  EXPECT_THAT(one->Receive(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0")));
}

TEST(RankGroupTest, OneThatEndsBeforeAllAreThereIsReplacedByItsNextLife) {
  RankGroup::Options first_life = Options(1, 3);
  first_life.on_lost = [](const absl::Status&) {};
  std::thread zero([options = Options(0, 3)] {
    absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::Join(options);
    ASSERT_THAT(group, IsOk());
    (*group)->SayFarewell();
  });
  EXPECT_THAT(RankGroup::Join(first_life), IsOk());
  ASSERT_OK_AND_ASSIGN(auto one, RankGroup::Join(Options(1, 3)));
  ASSERT_OK_AND_ASSIGN(auto two, RankGroup::Join(Options(2, 3)));
  EXPECT_THAT(one->Receive(), IsOkAndHolds(std::nullopt));
  EXPECT_THAT(two->Receive(), IsOkAndHolds(std::nullopt));
  one.reset();
  two.reset();
  zero.join();
}

TEST(StepPlanTest, IsTheSameOnTheOtherSide) {
  const std::vector<PageIndex> first_pages = {7, 3}, second_pages = {9};
  StepBatch batch;
  batch.tokens = {5, UnknownToken(1), 6, 8};
  batch.positions = {17, 4, 5, 6};
  batch.sequences = {{.first_row = 0, .num_rows = 1, .context_tokens = 18, .pages = first_pages},
                     {.first_row = 1, .num_rows = 3, .context_tokens = 7, .pages = second_pages}};
  batch.logit_rows = {0, 3};
  const std::string text = EncodeStepPlan(batch, /*samples=*/true);
  ASSERT_OK_AND_ASSIGN(const StepPlan plan, DecodeStepPlan(text));
  EXPECT_TRUE(plan.samples);
  EXPECT_EQ(plan.batch.tokens, batch.tokens);
  EXPECT_EQ(plan.batch.positions, batch.positions);
  EXPECT_EQ(plan.batch.logit_rows, batch.logit_rows);
  ASSERT_EQ(plan.batch.sequences.size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(plan.batch.sequences[i].first_row, batch.sequences[i].first_row);
    EXPECT_EQ(plan.batch.sequences[i].num_rows, batch.sequences[i].num_rows);
    EXPECT_EQ(plan.batch.sequences[i].context_tokens, batch.sequences[i].context_tokens);
    EXPECT_EQ(plan.batch.sequences[i].pages, batch.sequences[i].pages);
  }
  EXPECT_FALSE(DecodeStepPlan(EncodeStepPlan({}, false))->samples);
}

TEST(StepPlanTest, EveryCutIsAnError) {
  const std::vector<PageIndex> pages = {7, 3};
  StepBatch batch;
  batch.tokens = {5};
  batch.positions = {17};
  batch.sequences = {{.first_row = 0, .num_rows = 1, .context_tokens = 18, .pages = pages}};
  batch.logit_rows = {0};
  const std::string text = EncodeStepPlan(batch, true);
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_THAT(DecodeStepPlan(absl::string_view(text).substr(0, size)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cut off")))
        << size;
  }
  EXPECT_THAT(DecodeStepPlan(text + "x"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cut off")));
}

}  // namespace
}  // namespace tandem
