#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/tls/tls_identity.h"
#include "common/tls/tls_stream.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsNull;

class TlsIdentityTest : public testing::Test {
 protected:
  TlsIdentityTest() {
    own_ = authority_.Sign({"tandem", "router.example"});
    settings_ = {.certificate = File("certificate", own_.certificate),
                 .key = File("key", own_.key),
                 .authorities = File("authorities", authority_.certificate()),
                 .name = "tandem"};
  }
  TlsSettings::File File(const std::string& name, const std::string& text) {
    // Tests run beside each other, in processes of their own.
    const std::string path = testing::TempDir() + "tls_test_" + std::to_string(getpid()) + "_" + name;
    files_.push_back(path);
    std::ofstream(path) << text;
    return {path, "cluster.yaml:7: tls." + name};
  }

  ~TlsIdentityTest() override {
    for (const std::string& file : files_) remove(file.c_str());
  }

  std::vector<std::string> files_;
  const TestAuthority authority_{"test"};
  TestAuthority::Signed own_;
  TlsSettings settings_;
};

TEST_F(TlsIdentityTest, NothingIsLoadedWhereNothingIsSet) {
  EXPECT_THAT(*LoadTls({}), IsNull());
  EXPECT_THAT(*LoadClientTls({}), IsNull());
}

TEST_F(TlsIdentityTest, FilesAreLoadedWhole) {
  ASSERT_OK_AND_ASSIGN(auto identity, LoadTls(settings_));
  EXPECT_EQ(identity->certificate, own_.certificate);
  EXPECT_EQ(identity->key, own_.key);
  EXPECT_EQ(identity->authorities, authority_.certificate());
  EXPECT_EQ(identity->name, "tandem");
}

TEST_F(TlsIdentityTest, AClientNeedsNoCertificateAndMayAskForAnyName) {
  settings_.certificate = settings_.key = {};
  settings_.name = "elsewhere";
  ASSERT_OK_AND_ASSIGN(auto identity, LoadClientTls(settings_));
  EXPECT_EQ(identity->certificate, "");
  EXPECT_EQ(identity->name, "elsewhere");
}

TEST_F(TlsIdentityTest, ErrorsNameTheKeyWithItsLineAndTheFile) {
  const auto error_of = [&](auto change) {
    TlsSettings settings = settings_;
    change(settings);
    return LoadTls(settings).status();
  };
  const auto says = [](const char* key, const char* cause) {
    return StatusIs(absl::StatusCode::kInvalidArgument,
                    AllOf(HasSubstr(std::string("cluster.yaml:7: tls.") + key + ": /"), HasSubstr(cause)));
  };
  EXPECT_THAT(error_of([](auto& s) { s.key.path += "-missing"; }), says("key", "cannot be read"));
  EXPECT_THAT(error_of([](auto& s) { s.authorities.path = testing::TempDir(); }),
              says("authorities", "cannot be read"));
  EXPECT_THAT(error_of([&](auto& s) {
                s.authorities =
                    File("authorities",
                         authority_.certificate() + "-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n");
              }),
              says("authorities", "one that cannot be read"));
  settings_.authorities = File("authorities", authority_.certificate());
  EXPECT_THAT(error_of([&](auto& s) { s.certificate = File("certificate", "no PEM"); }),
              says("certificate", "holds no certificate"));
  settings_.certificate = File("certificate", own_.certificate);
  EXPECT_THAT(error_of([&](auto& s) { s.authorities = File("authorities", own_.key); }),
              says("authorities", "holds no certificate"));
  settings_.authorities = File("authorities", authority_.certificate());
  EXPECT_THAT(error_of([&](auto& s) { s.key = File("key", authority_.Sign({"tandem"}).key); }),
              says("key", "another certificate"));
  EXPECT_THAT(error_of([&](auto& s) { s.key = File("key", own_.certificate); }), says("key", "no private key"));
  settings_.key = File("key", own_.key);
  EXPECT_THAT(error_of([](auto& s) { s.name = "other"; }), says("certificate", "no DNS name other"));
  const TestAuthority::Signed over = authority_.Sign({"tandem"}, /*is_over=*/true);
  settings_.certificate = File("certificate", over.certificate);
  settings_.key = File("key", over.key);
  EXPECT_THAT(LoadTls(settings_).status(), says("certificate", "certificate has expired"));
}

TEST_F(TlsIdentityTest, OnlyWhatTheAuthoritiesSignedForThisNameIsAProcess) {
  ASSERT_OK_AND_ASSIGN(auto identity, LoadTls(settings_));
  const TestAuthority other("other"), intermediate("intermediate", &authority_);
  const auto check = [&](const std::string& chain) { return CheckProcess(*identity, chain, TlsUse::kClient); };
  const auto fails = [](const char* cause) { return StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr(cause)); };
  EXPECT_THAT(check(own_.certificate), IsOk());
  EXPECT_THAT(check(intermediate.Sign({"tandem"}).certificate + intermediate.certificate()), IsOk());
  EXPECT_THAT(check(intermediate.Sign({"tandem"}).certificate), fails("unable to get local issuer"));
  EXPECT_THAT(check(other.Sign({"tandem"}).certificate), fails("unable to get local issuer"));
  // The first name is the subject's common name, too, which does not count.
  EXPECT_THAT(check(authority_.Sign({"127.0.0.1"}).certificate), fails("no DNS name"));
  EXPECT_THAT(check(authority_.Sign({"*.tandem"}).certificate), fails("no DNS name"));
  EXPECT_THAT(check(""), fails("no certificate"));
  // An authority need not be a root.
  const TlsIdentity trusts_intermediate{.authorities = intermediate.certificate(), .name = "tandem"};
  EXPECT_THAT(CheckProcess(trusts_intermediate, intermediate.Sign({"tandem"}).certificate, TlsUse::kServer), IsOk());
}

// Two ends over a pair of sockets that do not block.
class TlsStreamTest : public testing::Test {
 protected:
  ~TlsStreamTest() override { CloseSockets(); }
  void CloseSockets() {
    for (int& socket : sockets_) {
      if (socket >= 0) close(std::exchange(socket, -1));
    }
  }
  static TlsIdentity Identity(const TestAuthority& signer, const TestAuthority& trusted, const std::string& name) {
    const TestAuthority::Signed own = signer.Sign({name});
    return {own.certificate, own.key, trusted.certificate(), "", "tandem"};
  }
  void Connect(const TlsIdentity& server, TlsContext::Peer peer, const TlsIdentity& client) {
    server_.reset();
    client_.reset();
    CloseSockets();
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets_), 0);
    server_ = std::make_unique<TlsStream>(*TlsContext::ForServer(server, peer), sockets_[0]);
    client_ = std::make_unique<TlsStream>(*TlsContext::ForClient(client), sockets_[1]);
  }
  // All of `text` from one end to the other; what arrived until one of them failed or ended.
  static std::string Move(TlsStream& from, TlsStream& to, const std::string& text) {
    std::string arrived;
    for (size_t sent = 0; arrived.size() < text.size();) {
      if (sent < text.size()) {
        const TlsStream::Progress progress = from.Write(text.data() + sent, text.size() - sent);
        if (progress.state == TlsStream::State::kFailed) break;
        sent += progress.bytes;
      }
      std::vector<char> buffer(TlsStream::kRecordBytes);
      const TlsStream::Progress progress = to.Read(buffer.data(), buffer.size());
      if (progress.state == TlsStream::State::kFailed || progress.state == TlsStream::State::kClosed) break;
      arrived.append(buffer.data(), progress.bytes);
    }
    return arrived;
  }

  const TestAuthority authority_{"cluster"}, other_{"other"};
  int sockets_[2] = {-1, -1};
  std::unique_ptr<TlsStream> server_, client_;
};

TEST_F(TlsStreamTest, BytesGoBothWaysHoweverMany) {
  const TlsIdentity process = Identity(authority_, authority_, "tandem");
  Connect(process, TlsContext::Peer::kProcess, process);
  std::string text;
  for (unsigned i = 0; i < 1'000'000; ++i) text += static_cast<char>(i * 7919 >> 3);
  EXPECT_EQ(Move(*client_, *server_, text), text);
  EXPECT_EQ(Move(*server_, *client_, text), text);
  client_->SayGoodbye();
  char byte;
  EXPECT_EQ(server_->Read(&byte, 1).state, TlsStream::State::kClosed);
}

TEST_F(TlsStreamTest, WaitsWhereThePeerHasSaidNothing) {
  const TlsIdentity process = Identity(authority_, authority_, "tandem");
  Connect(process, TlsContext::Peer::kProcess, process);
  char byte;
  EXPECT_EQ(server_->Read(&byte, 1).state, TlsStream::State::kWantsRead);
  EXPECT_EQ(client_->Write("x", 1).state, TlsStream::State::kWantsRead);
  EXPECT_EQ(server_->failure(), "");
}

TEST_F(TlsStreamTest, AServerOfAnotherNameOrAuthorityIsNotBelieved) {
  for (const auto& [server, cause] :
       {std::pair(Identity(authority_, authority_, "elsewhere"), "mismatch"),
        std::pair(Identity(other_, authority_, "tandem"), "unable to get local issuer certificate")}) {
    Connect(server, TlsContext::Peer::kAnyone, {.authorities = authority_.certificate(), .name = "tandem"});
    EXPECT_EQ(Move(*client_, *server_, "secret"), "");
    EXPECT_THAT(client_->failure(), HasSubstr(cause));
  }
}

TEST_F(TlsStreamTest, AnAuthorityNeedNotBeARoot) {
  const TestAuthority intermediate("intermediate", &authority_);
  const TlsIdentity process = Identity(intermediate, intermediate, "tandem");
  Connect(process, TlsContext::Peer::kProcess, process);
  EXPECT_EQ(Move(*client_, *server_, "hello"), "hello");
}

TEST_F(TlsStreamTest, AClientMustAskForAName) {
  EXPECT_THAT(TlsContext::ForClient({.authorities = authority_.certificate()}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(TlsStreamTest, AClientThatIsNoProcessIsTurnedAway) {
  const TlsIdentity process = Identity(authority_, authority_, "tandem");
  for (const TlsIdentity& client :
       {TlsIdentity{.authorities = authority_.certificate(), .name = "tandem"},
        Identity(authority_, authority_, "client"), Identity(other_, authority_, "tandem")}) {
    Connect(process, TlsContext::Peer::kProcess, client);
    EXPECT_EQ(Move(*client_, *server_, "hello"), "");
    EXPECT_THAT(server_->failure(), HasSubstr("TLS: "));
  }
}

TEST_F(TlsStreamTest, ClientsShowACertificateWhereTheirAuthoritiesAreNamed) {
  TlsIdentity process = Identity(authority_, authority_, "tandem");
  process.client_authorities = other_.certificate();
  Connect(process, TlsContext::Peer::kAnyone, {.authorities = authority_.certificate(), .name = "tandem"});
  EXPECT_EQ(Move(*client_, *server_, "hello"), "");
  Connect(process, TlsContext::Peer::kAnyone, Identity(other_, authority_, "somebody"));
  EXPECT_EQ(Move(*client_, *server_, "hello"), "hello");
}

TEST_F(TlsStreamTest, HttpInTheClearIsKnownAsSuch) {
  const TlsIdentity process = Identity(authority_, authority_, "tandem");
  Connect(process, TlsContext::Peer::kAnyone, process);
  ASSERT_EQ(write(sockets_[1], "GET / HTTP/1.1\r\n\r\n", 18), 18);
  char byte;
  EXPECT_EQ(server_->Read(&byte, 1).state, TlsStream::State::kFailed);
  EXPECT_TRUE(server_->peer_speaks_http());
}

}  // namespace
}  // namespace tandem
