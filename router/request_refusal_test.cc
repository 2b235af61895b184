// Requests that could not be served in time, and are told so at once.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request_session_fixture.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

using RequestRefusalTest = RequestSessionTest;

TEST_F(RequestRefusalTest, IsRefusedAtOnceWhereTheFirstTokenWouldComeTooLate) {
  Placement placement = Late(kPrefill, kDecode);
  placement.is_sure_to_wait = false;
  const auto place = [&] { return EndOf(placement, kNow + absl::Seconds(1)); };
  request_.ttft_limit = absl::Seconds(5);
  EXPECT_FALSE(place().has_value());  // Nobody is before it: it may show that it goes faster.
  placement.is_sure_to_wait = true;
  const absl::Status late = place().value();
  EXPECT_THAT(late, StatusIs(absl::StatusCode::kResourceExhausted,
                             HasSubstr("in 10s, and the deadline or the service tier leaves 4s")));
  EXPECT_EQ(GetRetryAfter(late), absl::Seconds(4));  // What it will be about.
  EXPECT_THAT(last_.starts, IsEmpty());
  request_.ttft_limit = absl::Seconds(9);
  EXPECT_FALSE(place().has_value());  // It might just do.
  request_.deadline = kNow + absl::Seconds(4);
  EXPECT_THAT(place().value(), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(RequestRefusalTest, IsRefusedAtOnceWhereFurtherTokensWouldTakeTooLong) {
  Placement placement{kPrefill, kDecode};
  placement.predicted_tpot = absl::Milliseconds(100);
  const auto place = [&] { return EndOf(placement, kNow); };
  request_.tpot_limit = absl::Milliseconds(79);
  EXPECT_FALSE(place().has_value());  // Nobody runs there: it may show that it goes faster.
  placement.is_sure_to_share = true;
  const absl::Status slow = place().value();
  EXPECT_THAT(slow, StatusIs(absl::StatusCode::kResourceExhausted,
                             HasSubstr("each further token is predicted to come in 100ms, and the service tier allows "
                                       "79ms")));
  EXPECT_EQ(GetRetryAfter(slow), absl::Milliseconds(6400));
  EXPECT_THAT(last_.starts, IsEmpty());
  request_.sampling.max_tokens = 1;
  EXPECT_FALSE(place().has_value());  // It has no further token.
  request_.sampling.max_tokens = 200;
  request_.tpot_limit = absl::Milliseconds(81);
  EXPECT_FALSE(place().has_value());  // It might just do.
  // 200 tokens of 80 ms or more.
  request_.deadline = kNow + absl::Seconds(15.9);
  EXPECT_FALSE(place().has_value());  // It may end sooner.
  request_.sampling.ignore_eos = true;
  EXPECT_THAT(place().value(), StatusIs(absl::StatusCode::kResourceExhausted,
                                        HasSubstr("the whole answer is predicted to come in 19.9s, and the "
                                                  "deadline leaves 15.9s")));
  request_.deadline = kNow + absl::Seconds(16);
  EXPECT_FALSE(place().has_value());
  request_.sampling.ignore_eos = false;
  request_.sampling.min_tokens = 300;
  EXPECT_THAT(place().value(), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(RequestRefusalTest, ACallsFurtherSamplesAreNotRefusedForTheFirst) {
  request_.ttft_limit = absl::Seconds(1);
  EXPECT_FALSE(EndOf(Late(kPrefill, kDecode), kNow, /*sample=*/1).has_value());
}

TEST_F(RequestRefusalTest, WhatHasBegunIsNotRefusedForComingLate) {
  request_.ttft_limit = absl::Seconds(1);
  Start();
  Do(session_->OnWorkerLost(kPrefill, kNow));
  ASSERT_TRUE(last_.needs_placement);
  EXPECT_FALSE(Do(session_->OnPlaced(Late(kPrefill2, kDecode2), view_, kNow)).finished.has_value());
}

}  // namespace
}  // namespace tandem
