// Calls with and without an API key, on real processes.

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/router_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/http_client.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kOperator[] = "sk-operator-0123456789", kUser[] = "sk-user-0123456789abc";

TEST(AccessTest, OnlyKnownKeysMayCallAndOnlyOperatorsDrain) {
  setenv("TANDEM_TEST_OPERATOR", kOperator, /*overwrite=*/1);
  setenv("TANDEM_TEST_USER", kUser, /*overwrite=*/1);
  ProcessCluster::Options options;
  options.prefill_replicas = options.decode_replicas = 1;
  options.api_key = kOperator;
  options.router_extra =
      "  access_log: true\n  api_keys:\n    - {name: ops, key_env: TANDEM_TEST_OPERATOR, operator: true}\n"
      "    - {name: user, key_env: TANDEM_TEST_USER}\n";
  // The workers know it, too.
  setenv("TANDEM_TEST_CLUSTER", "cluster-0123456789", /*overwrite=*/1);
  options.topology_extra = "cluster: {secret_env: TANDEM_TEST_CLUSTER}\n";
  ProcessCluster cluster(options);
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const GenerateOptions ask{.text = "Water boils at", .sampling = {.max_tokens = 4}};

  RouterClient nobody(cluster.router()), stranger(cluster.router(), {.api_key = "sk-no-such-key-0123456"});
  for (RouterClient* client : {&nobody, &stranger}) {
    const auto is_refused = StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("API key"));
    EXPECT_THAT(client->Generate(ask, [](const GeneratedPiece&) { return true; }).status(), is_refused);
    EXPECT_THAT(client->Cancel("r"), is_refused);
    EXPECT_THAT(client->Explain("r").status(), is_refused);
    EXPECT_THAT(client->Status().status(), is_refused);
    EXPECT_THAT(client->Models().status(), is_refused);
    EXPECT_THAT(client->Drain("decode-0"), is_refused);
  }
  EXPECT_EQ(HttpClient(cluster.http_address()).Ask("POST", "/v1/completions", R"({"prompt":"x"})").status, 401);

  RouterClient user(cluster.router(), {.api_key = kUser});
  EXPECT_THAT(user.Generate(ask, [](const GeneratedPiece&) { return true; }).status(), IsOk());
  EXPECT_THAT(user.Drain("decode-0"),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("user is no operator's")));
  const std::string header = absl::StrCat("Authorization: Bearer ", kUser, "\r\n");
  EXPECT_EQ(HttpClient(cluster.http_address())
                .Ask("POST", "/v1/completions", R"({"prompt":"x","max_tokens":2})", header)
                .status,
            200);
  EXPECT_TRUE(cluster.AwaitOutput("tenant=user"));
  // The log has those, too, that never became requests.
  EXPECT_TRUE(cluster.AwaitOutput("outcome=UNAUTHENTICATED"));
  EXPECT_EQ(HttpClient(cluster.http_address())
                .Ask("POST", "/v1/completions", "{}", header + "X-Request-Id: empty-one\r\n")
                .status,
            400);
  EXPECT_TRUE(cluster.AwaitOutput("request=empty-one outcome=INVALID_ARGUMENT"));
  EXPECT_THAT(cluster.client().Drain("prefill-0"), IsOk());
  // No secret in any log.
  EXPECT_THAT(cluster.Output(), AllOf(Not(HasSubstr("sk-")), Not(HasSubstr("cluster-0123"))));
}

TEST(AccessTest, WithTlsEverythingWorksAndNothingGoesInTheClear) {
  for (const auto& [transports, prefills] : {std::pair("shm", 1), std::pair("ucx", 1), std::pair("shm", 0)}) {
    ProcessCluster cluster({.transports = transports, .prefill_replicas = prefills, .decode_replicas = 1, .tls = true});
    ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
    const ProcessCluster::Answer answer = cluster.Ask({.text = "Water boils at", .sampling = {.max_tokens = 4}});
    EXPECT_THAT(answer.summary, IsOk());
    EXPECT_EQ(answer.tokens.size(), 4);
    RouterClient in_the_clear(cluster.router());
    EXPECT_THAT(in_the_clear.Status().status(), StatusIs(absl::StatusCode::kUnavailable));

    TlsIdentity by_name = *cluster.client_tls();
    by_name.name = "tandem";
    HttpClient http(cluster.http_address(), *TlsContext::ForClient(by_name));
    const HttpAnswer spoken = http.Ask("POST", "/v1/completions", R"({"prompt":"Water boils at","max_tokens":4})");
    EXPECT_EQ(spoken.status, 200) << spoken.body;
    EXPECT_EQ(HttpClient(cluster.http_address()).Ask("GET", "/health").status, 400);
    EXPECT_TRUE(cluster.AwaitAllPagesFree());
  }
}

TEST(AccessTest, NothingListensBeyondLoopback) {
  // UCX listens as well; with TLS the router is at a TCP port.
  ProcessCluster cluster({.transports = "ucx", .tls = true});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  for (const char* process : {"router", "prefill-0", "prefill-1", "decode-0", "decode-1"}) {
    const std::vector<std::string> addresses = cluster.ListeningAt(process);
    EXPECT_GE(addresses.size(), 2) << process;
    for (const std::string& address : addresses) {  // IPv4's 127.0.0.1, or that within IPv6.
      EXPECT_THAT(address, testing::ContainsRegex("^(0000000000000000FFFF0000)?0100007F:")) << process;
    }
  }
}

TEST(AccessTest, WithMutualTlsOnlyClientsWithACertificateAreHeard) {
  ProcessCluster cluster({.prefill_replicas = 1, .decode_replicas = 1, .tls = true, .mutual_tls = true});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const GenerateOptions ask{.text = "Water boils at", .sampling = {.max_tokens = 4}};
  EXPECT_THAT(cluster.Ask(ask).summary, IsOk());
  TlsIdentity known = *cluster.client_tls(), unknown = known, stranger = known;
  known.name = unknown.name = stranger.name = "tandem";
  unknown.certificate = unknown.key = "";
  const TestAuthority::Signed forged = TestAuthority("clients").Sign({"client"});  // Another one of that name.
  stranger.certificate = forged.certificate;
  stranger.key = forged.key;
  const auto ask_over_http = [&](const TlsIdentity& identity) {
    HttpClient http(cluster.http_address(), *TlsContext::ForClient(identity));
    return http.Ask("POST", "/v1/completions", R"({"prompt":"Water boils at","max_tokens":4})").status;
  };
  EXPECT_EQ(ask_over_http(known), 200);
  for (const TlsIdentity& identity : {unknown, stranger}) {
    EXPECT_EQ(ask_over_http(identity), 0);  // No answer: the connection ends in the handshake.
    RouterClient grpc(cluster.router(), {.tls = std::make_shared<const TlsIdentity>(identity)});
    EXPECT_THAT(grpc.Status().status(), StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_EQ(ask_over_http(known), 200);
}

}  // namespace
}  // namespace tandem
