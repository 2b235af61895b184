// Who may link to whom.

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/loopback/loopback_transport.h"
#include "tests/support/link_ends.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(LinkTrustTest, OnlyProcessesOfOneClusterShareALink) {
  HelloMessage prefill = LinkTestHello("prefill-0", Incarnation(1), LinkTestLayout(16));
  HelloMessage decode = LinkTestHello("decode-0", Incarnation(2), LinkTestLayout(16));
  prefill.peer_secret = "0123456789abcdef";
  for (const char* other : {"", "0123456789abcdeX", "0123456789abcdef0"}) {
    decode.peer_secret = other;
    EXPECT_FALSE(IsOfThisCluster(decode, prefill));
    EXPECT_THAT(CheckHellos(prefill, decode),
                StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("secret"), Not(HasSubstr("0123")))));
  }
  decode.peer_secret = prefill.peer_secret;
  EXPECT_THAT(CheckHellos(prefill, decode), IsOk());
}

TEST(LinkTrustTest, AStrangersGreetingIsRefusedBeforeAnythingIsDoneForIt) {
  DecodeEnd::Options own;
  own.peer_secret = "0123456789abcdef";
  DecodeEnd decode(NewLoopbackTransport(), own);
  PrefillEnd stranger(NewLoopbackTransport());
  stranger.LinkTo(decode.port());
  EXPECT_TRUE(stranger.Await([&] { return absl::StrContains(stranger.state_.error, "the cluster's secret"); }));
  EXPECT_TRUE(decode.Await([&] { return decode.hellos_ == 0; }));
  PrefillEnd peer(NewLoopbackTransport(), With([&](auto& options) { options.peer_secret = own.peer_secret; }));
  peer.LinkTo(decode.port());
  EXPECT_TRUE(peer.AwaitUp());
}

TEST(LinkTrustTest, MovesKvWhereItsMessagesGoThroughTls) {
  const TestAuthority authority("cluster"), other("other");
  const auto identity_of = [](const TestAuthority& signer, const TestAuthority& trusted, const std::string& name) {
    const TestAuthority::Signed own = signer.Sign({name});
    return TlsIdentity{own.certificate, own.key, trusted.certificate(), "", "tandem"};
  };
  DecodeEnd decode(NewLoopbackTransport(), {.tls = *TlsContext::ForServer(identity_of(authority, authority, "tandem"),
                                                                          TlsContext::Peer::kProcess)});
  // In the clear; signed by somebody else; with another name; signed right, but believing somebody else.
  for (const auto& tls : std::vector<std::shared_ptr<const TlsContext>>{
           nullptr, *TlsContext::ForClient(identity_of(other, authority, "tandem")),
           *TlsContext::ForClient(identity_of(authority, authority, "client")),
           *TlsContext::ForClient(identity_of(authority, other, "tandem"))}) {
    PrefillEnd stranger(NewLoopbackTransport(), With([&](auto& options) { options.tls = tls; }));
    stranger.LinkTo(decode.port());
    EXPECT_TRUE(stranger.Await([&] { return !stranger.state_.error.empty(); }));
    EXPECT_TRUE(decode.Await([&] { return decode.hellos_ == 0; }));
  }
  PrefillEnd prefill(NewLoopbackTransport(), With([&](auto& options) {
                       options.tls = *TlsContext::ForClient(identity_of(authority, authority, "tandem"));
                     }));
  TransferAndCompare(prefill, decode, 16);
}

}  // namespace
}  // namespace tandem
