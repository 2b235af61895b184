#include "kvtransfer/wire.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

template <typename T>
T RoundTrip(const T& message) {
  absl::StatusOr<LinkMessage> decoded = DecodeLinkMessage(EncodeLinkMessage(message));
  EXPECT_THAT(decoded, IsOk());
  EXPECT_TRUE(std::holds_alternative<T>(*decoded));
  return std::get<T>(*decoded);
}

TEST(WireTest, HelloKeepsEveryField) {
  HelloMessage hello;
  hello.worker_id = "prefill-0";
  hello.rank = 3;
  hello.incarnation = Incarnation(0xFFFF'FFFF'FFFF'FFF1);
  hello.host_boot_id = "boot";
  hello.pid = 123;
  hello.ucx_version = "1.22.0";
  hello.model_fingerprint = 77;
  hello.layout = {.num_layers = 30, .num_kv_heads = 3, .head_dim = 64, .num_pages = 9};
  hello.exports = {{"shm", "/proc/1/fd/2", "key", 4096, 8192}};
  hello.checksums = true;
  HelloMessage got = RoundTrip(hello);
  EXPECT_EQ(got.protocol_version, kLinkProtocolVersion);
  EXPECT_EQ(got.worker_id, hello.worker_id);
  EXPECT_EQ(got.rank, hello.rank);
  EXPECT_EQ(got.incarnation, hello.incarnation);
  EXPECT_EQ(got.host_boot_id, hello.host_boot_id);
  EXPECT_EQ(got.pid, hello.pid);
  EXPECT_EQ(got.ucx_version, hello.ucx_version);
  EXPECT_EQ(got.model_fingerprint, hello.model_fingerprint);
  EXPECT_EQ(got.layout, hello.layout);
  ASSERT_EQ(got.exports.size(), 1);
  EXPECT_EQ(got.exports[0].transport, "shm");
  EXPECT_EQ(got.exports[0].address, "/proc/1/fd/2");
  EXPECT_EQ(got.exports[0].remote_key, "key");
  EXPECT_EQ(got.exports[0].base_address, 4096);
  EXPECT_EQ(got.exports[0].size_bytes, 8192);
  EXPECT_TRUE(got.checksums);
}

TEST(WireTest, HandoverMessagesKeepEveryField) {
  OfferMessage offer = RoundTrip(OfferMessage{HandoverId(5), {1, 2, 3}});
  EXPECT_EQ(offer.handover, HandoverId(5));
  EXPECT_EQ(offer.tokens, (std::vector<TokenId>{1, 2, 3}));
  GrantMessage grant = RoundTrip(GrantMessage{HandoverId(5), TransferEpoch(9), {7, 0}, 2});
  EXPECT_EQ(grant.epoch, TransferEpoch(9));
  EXPECT_EQ(grant.pages, (std::vector<PageIndex>{7, 0}));
  EXPECT_EQ(grant.first_missing_page, 2);
  CommitMessage commit = RoundTrip(CommitMessage{HandoverId(5), TransferEpoch(9), 2, {0xFFFFFFFF, 1}, 42});
  EXPECT_EQ(commit.pages_written, 2);
  EXPECT_EQ(commit.page_checksums, (std::vector<uint32_t>{0xFFFFFFFF, 1}));
  EXPECT_EQ(commit.first_token, 42);
  EXPECT_EQ(RoundTrip(AbortMessage{HandoverId(5), TransferEpoch(9), "why"}).reason, "why");
  EXPECT_TRUE(RoundTrip(LinkRefusedMessage{"why", true, true}).must_restart);
  EXPECT_EQ(RoundTrip(RefuseMessage{HandoverId(1), "full", ErrorReason::kPoolExhausted}).error_reason,
            ErrorReason::kPoolExhausted);
  EXPECT_EQ(
      RoundTrip(AbortMessage{HandoverId(1), TransferEpoch(2), "bad", ErrorReason::kChecksumMismatch}).error_reason,
      ErrorReason::kChecksumMismatch);
  EXPECT_EQ(RoundTrip(AckMessage{HandoverId(1), TransferEpoch(2)}).epoch, TransferEpoch(2));
  EXPECT_EQ(RoundTrip(AbortDoneMessage{HandoverId(1), TransferEpoch(2)}).epoch, TransferEpoch(2));
  EXPECT_EQ(RoundTrip(LinkHeartbeatMessage{Incarnation(3), 4}).sequence, 4);
}

TEST(WireTest, RefusesBytesThatAreNoMessage) {
  EXPECT_THAT(DecodeLinkMessage(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DecodeLinkMessage("\xFF\xFF\xFF"), StatusIs(absl::StatusCode::kInvalidArgument));
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {  // Must not crash, whatever comes.
    std::string bytes(random() % 64, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    DecodeLinkMessage(bytes).status().IgnoreError();
  }
}

}  // namespace
}  // namespace tandem
