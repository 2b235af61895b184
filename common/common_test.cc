#include <thread>
#include <vector>

#include "common/error_reason.h"
#include "common/fake_clock.h"
#include "common/gate.h"
#include "common/ids.h"
#include "common/mailbox.h"
#include "common/metrics.h"
#include "common/page_hash.h"
#include "common/secret.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(ErrorReasonTest, TravelsWithTheStatus) {
  absl::Status status =
      MakeError(absl::StatusCode::kUnavailable, ErrorReason::kLinkDown, "down", absl::Milliseconds(30));
  EXPECT_EQ(GetErrorReason(status), ErrorReason::kLinkDown);
  EXPECT_EQ(GetRetryAfter(status), absl::Milliseconds(30));
  EXPECT_EQ(GetErrorReason(absl::InternalError("x")), ErrorReason::kUnknown);
  EXPECT_EQ(GetRetryAfter(absl::InternalError("x")), std::nullopt);
}

TEST(ErrorReasonTest, NamesRoundTrip) {
  for (ErrorReason reason : {ErrorReason::kWorkerLost, ErrorReason::kPoolExhausted, ErrorReason::kKvHoldExpired}) {
    EXPECT_EQ(ParseErrorReason(ErrorReasonName(reason)), reason);
  }
  EXPECT_EQ(ParseErrorReason("NO_SUCH"), ErrorReason::kUnknown);
}

TEST(ErrorReasonTest, RetryFollowsTheReasonAndNotTheCode) {
  EXPECT_TRUE(IsRetryable(MakeError(absl::StatusCode::kDataLoss, ErrorReason::kChecksumMismatch, "")));
  EXPECT_FALSE(IsRetryable(absl::UnavailableError("no reason given")));
  EXPECT_FALSE(IsRetryable(MakeError(absl::StatusCode::kInvalidArgument, ErrorReason::kRequestTooLong, "")));
}

TEST(IdsTest, DrawsDifferentIds) { EXPECT_NE(DrawRandomId(), DrawRandomId()); }

TEST(MailboxTest, KeepsOrder) {
  Mailbox<int> mailbox;
  EXPECT_TRUE(mailbox.Push(1));
  EXPECT_TRUE(mailbox.Push(2));
  EXPECT_THAT(mailbox.TakeAll(absl::ZeroDuration()), ElementsAre(1, 2));
  EXPECT_THAT(mailbox.TakeAll(absl::ZeroDuration()), IsEmpty());
}

TEST(MailboxTest, CloseWakesTheConsumerAndRefusesMore) {
  Mailbox<int> mailbox;
  std::thread consumer([&] { EXPECT_THAT(mailbox.TakeAll(absl::InfiniteDuration()), IsEmpty()); });
  mailbox.Close();
  consumer.join();
  EXPECT_FALSE(mailbox.Push(1));
}

TEST(MailboxTest, LosesNothingBetweenThreads) {
  Mailbox<int> mailbox;
  std::vector<std::thread> producers;
  for (int t = 0; t < 4; ++t) {
    producers.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) ASSERT_TRUE(mailbox.Push(int{i}));
    });
  }
  size_t got = 0;
  while (got < 4000) got += mailbox.TakeAll(absl::Seconds(10)).size();
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(got, 4000);
}

TEST(GateTest, WaitsForThoseInside) {
  Gate gate;
  ASSERT_TRUE(gate.Enter());
  gate.Close();
  EXPECT_FALSE(gate.Enter());
  EXPECT_FALSE(gate.AwaitEmpty(absl::ZeroDuration()));
  gate.Leave();
  EXPECT_TRUE(gate.AwaitEmpty(absl::InfiniteDuration()));
}

TEST(FakeClockTest, StandsStillUntilAdvanced) {
  FakeClock clock;
  absl::Time begin = clock.Now();
  EXPECT_EQ(clock.Now(), begin);
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now() - begin, absl::Seconds(3));
}

TEST(PageHashTest, ChainsOverFullPagesOnly) {
  std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7};
  std::vector<uint64_t> hashes = ChainedPageHashes(tokens, 3);
  ASSERT_THAT(hashes, SizeIs(2));
  tokens[0] = 9;  // Changes the first page, and by the chain the second.
  std::vector<uint64_t> changed = ChainedPageHashes(tokens, 3);
  EXPECT_NE(changed[0], hashes[0]);
  EXPECT_NE(changed[1], hashes[1]);
  tokens = {1, 2, 3, 4, 5, 6, 99};
  EXPECT_EQ(ChainedPageHashes(tokens, 3), hashes);
  EXPECT_THAT(ChainedPageHashes({1, 2}, 3), IsEmpty());
}

TEST(MetricsTest, ServesPrometheusText) {
  MetricsServer server;
  server.Counter("a_total", "Help.", {{"k", "v"}}).Increment(3);
  server.Gauge("b", "Help.").Set(2);
  server.Seconds("c_seconds", "Help.").Observe(0.002);
  std::string text = server.Text();
  EXPECT_THAT(text, HasSubstr("a_total{k=\"v\"} 3"));
  EXPECT_THAT(text, HasSubstr("b 2"));
  EXPECT_THAT(text, HasSubstr("c_seconds_bucket{le=\"0.0025\"} 1"));
  EXPECT_THAT(server.Listen("127.0.0.1:0"), IsOk());
  EXPECT_GT(server.port(), 0);
  MetricsServer other;
  EXPECT_THAT(other.Listen("127.0.0.1:" + std::to_string(server.port())), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(SecretTest, OnlyTheWholeSecretIsTheSame) {
  EXPECT_TRUE(IsSameSecret("0123456789abcdef", "0123456789abcdef"));
  for (const char* given : {"", "0", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeg", "1123456789abcdef"}) {
    EXPECT_FALSE(IsSameSecret(given, "0123456789abcdef")) << given;
  }
  EXPECT_FALSE(IsSameSecret("", ""));
}

}  // namespace
}  // namespace tandem
