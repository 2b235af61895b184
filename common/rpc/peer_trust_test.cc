#include "common/rpc/peer_trust.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/channel.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/fake_control.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
namespace health = grpc::health::v1;

// A worker's stream that reports one heartbeat.
class ReportStream final : public ClientStream<v1::WorkerReport, v1::RouterDirective> {
 public:
  grpc::StatusCode AwaitClosed() {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&closed_), FakeControl::kPatience));
    return code_;
  }

 private:
  void OnMessage(v1::RouterDirective&) override {}
  void OnClosed(const grpc::Status& status) override {
    absl::MutexLock lock(&mu_);
    code_ = status.error_code();
    closed_ = true;
  }
  absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  grpc::StatusCode code_ ABSL_GUARDED_BY(mu_) = grpc::StatusCode::OK;
};

TEST(PeerTrustTest, OnlyAProcessThatKnowsTheSecretOpensAStream) {
  FakeControl control(/*answers=*/true, {.secret = "0123456789abcdef"}),
      other(/*answers=*/true, {.secret = "0123456789abcdeX"}), none(/*answers=*/true);
  const auto dial = [&](CompletionLoop& loop) {
    auto stream = std::make_shared<ReportStream>();
    auto channel = NewChannel(control.address(), /*tls=*/nullptr);
    stream->Start(loop,
                  [&](auto... arguments) { return v1::Control::NewStub(channel)->PrepareAsyncRegister(arguments...); });
    stream->Send([](v1::WorkerReport& report) { report.mutable_heartbeat()->set_state("ready"); });
    return stream;
  };
  testing::internal::CaptureStderr();
  EXPECT_EQ(dial(none.loop())->AwaitClosed(), grpc::StatusCode::UNAUTHENTICATED);   // Knows none.
  EXPECT_EQ(dial(other.loop())->AwaitClosed(), grpc::StatusCode::UNAUTHENTICATED);  // Knows another one.
  EXPECT_THAT(control.AwaitReports(0), IsEmpty());
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, testing::ContainsRegex("WARNING.* peer refused .*secret is missing"));
  EXPECT_EQ(told.find("peer refused"), told.rfind("peer refused"));  // Once.
  auto known = dial(control.loop());
  EXPECT_THAT(control.AwaitReports(1), ElementsAre("ready"));
  control.EndStreams();
  EXPECT_EQ(known->AwaitClosed(), grpc::StatusCode::ABORTED);
}

// Identities that believe one authority, and one that another one has signed.
struct Identities {
  static std::shared_ptr<const TlsIdentity> Make(const TestAuthority& signer, const TestAuthority& trusted,
                                                 const std::vector<std::string>& names, bool wants_clients = false) {
    const TestAuthority::Signed own = signer.Sign(names);
    return std::make_shared<const TlsIdentity>(TlsIdentity{own.certificate, own.key, trusted.certificate(),
                                                           wants_clients ? trusted.certificate() : std::string(),
                                                           "tandem"});
  }
  const TestAuthority authority{"cluster"}, other{"other"};
  const std::shared_ptr<const TlsIdentity> process = Make(authority, authority, {"tandem", "127.0.0.1"}),
                                           named_else = Make(authority, authority, {"client"}),
                                           signed_else = Make(other, authority, {"tandem"}),
                                           believes_else = Make(authority, other, {"tandem"});
};

TEST(PeerTrustTest, OnlyProcessesWithTheirCertificateOpenAStream) {
  const Identities identities;
  for (const Callers callers : {Callers::kProcesses, Callers::kClientsAsWell}) {
    FakeControl control(/*answers=*/true, {.tls = identities.process}, callers);
    const auto dial = [&](const TlsIdentity* identity) {
      auto stream = std::make_shared<ReportStream>();
      auto channel = NewChannel(control.address(), identity);
      stream->Start(control.loop(), [&](auto... arguments) {
        return v1::Control::NewStub(channel)->PrepareAsyncRegister(arguments...);
      });
      stream->Send([](v1::WorkerReport& report) { report.mutable_heartbeat()->set_state("ready"); });
      return stream;
    };
    const TlsIdentity shows_none{.authorities = identities.authority.certificate(), .name = "tandem"};
    for (const TlsIdentity* identity : {&shows_none, identities.named_else.get(), identities.signed_else.get(),
                                        identities.believes_else.get(), static_cast<const TlsIdentity*>(nullptr)}) {
      EXPECT_THAT(dial(identity)->AwaitClosed(),
                  AnyOf(grpc::StatusCode::UNAUTHENTICATED, grpc::StatusCode::UNAVAILABLE));
    }
    EXPECT_THAT(control.AwaitReports(0), IsEmpty());
    auto known = dial(identities.process.get());
    EXPECT_THAT(control.AwaitReports(1), ElementsAre("ready"));
    control.EndStreams();
    EXPECT_EQ(known->AwaitClosed(), grpc::StatusCode::ABORTED);
  }
}

TEST(PeerTrustTest, ClientsNeedACertificateOnlyWhereTheServerWantsOne) {
  const Identities identities;
  for (const bool wants : {false, true}) {
    v1::Control::AsyncService service;
    const auto own = Identities::Make(identities.authority, identities.authority, {"tandem", "127.0.0.1"}, wants);
    ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("127.0.0.1:0", {{&service, v1::Control::service_full_name()}},
                                                          {.tls = own}, Callers::kClientsAsWell));
    server->StartThread();
    const auto code_of = [&](const TlsIdentity* identity) {
      auto stub = health::Health::NewStub(NewChannel(server->address(), identity));
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
      health::HealthCheckResponse response;
      return stub->Check(&context, {}, &response).error_code();
    };
    // The server must have the address that is dialled, where the client asks for no name.
    TlsIdentity client{.authorities = identities.authority.certificate()};
    EXPECT_EQ(code_of(&client), wants ? grpc::StatusCode::UNAVAILABLE : grpc::StatusCode::OK);
    EXPECT_EQ(code_of(nullptr), grpc::StatusCode::UNAVAILABLE);
    client.name = "elsewhere";
    EXPECT_EQ(code_of(&client), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(code_of(identities.signed_else.get()), grpc::StatusCode::UNAVAILABLE);
    client = *identities.named_else;
    EXPECT_EQ(code_of(&client), grpc::StatusCode::OK);
  }
}

// The client's authority may sign any name, that of the processes as well.
TEST(PeerTrustTest, ACertificateThatTheClientsAuthoritySignedMakesNoProcess) {
  const TestAuthority processes("processes"), clients("clients");
  const TestAuthority::Signed own = processes.Sign({"tandem"}), shown = clients.Sign({"tandem"});
  const auto router = std::make_shared<const TlsIdentity>(
      TlsIdentity{own.certificate, own.key, processes.certificate(), clients.certificate(), "tandem"});
  FakeControl control(/*answers=*/true, {.tls = router}, Callers::kClientsAsWell);
  const TlsIdentity client{shown.certificate, shown.key, processes.certificate(), "", "tandem"};
  auto channel = NewChannel(control.address(), &client);
  grpc::ClientContext context;
  health::HealthCheckResponse response;
  EXPECT_TRUE(health::Health::NewStub(channel)->Check(&context, {}, &response).ok());
  auto stream = std::make_shared<ReportStream>();
  stream->Start(control.loop(),
                [&](auto... arguments) { return v1::Control::NewStub(channel)->PrepareAsyncRegister(arguments...); });
  EXPECT_EQ(stream->AwaitClosed(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace tandem
