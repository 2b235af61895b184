#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "client/router_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::IsNull;

class IdentityOfEnvironmentTest : public testing::Test {
 protected:
  ~IdentityOfEnvironmentTest() override {
    for (const char* name : {"API_KEY", "TLS_AUTHORITIES", "TLS_CERTIFICATE", "TLS_KEY", "TLS_NAME"}) Set(name, "");
  }
  static void Set(const std::string& name, const std::string& value) {
    setenv(("TANDEM_" + name).c_str(), value.c_str(), /*overwrite=*/1);
  }
  static std::string File(const std::string& name, const std::string& text) {
    const std::string path = testing::TempDir() + "identity_test_" + std::to_string(getpid()) + "_" + name;
    std::ofstream(path) << text;
    return path;
  }
};

TEST_F(IdentityOfEnvironmentTest, NothingIsSaidWhereNothingIsSet) {
  ASSERT_OK_AND_ASSIGN(const ClientIdentity identity, IdentityOfEnvironment());
  EXPECT_EQ(identity.api_key, "");
  EXPECT_THAT(identity.tls, IsNull());
}

TEST_F(IdentityOfEnvironmentTest, AuthoritiesTurnTlsOnAndTheRestBelongsToIt) {
  const TestAuthority authority("test");
  const TestAuthority::Signed own = authority.Sign({"somebody"});
  Set("TLS_NAME", "tandem");
  EXPECT_THAT(IdentityOfEnvironment(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("TANDEM_TLS_AUTHORITIES turns on")));
  Set("TLS_AUTHORITIES", File("authorities", authority.certificate()));
  ASSERT_OK_AND_ASSIGN(ClientIdentity identity, IdentityOfEnvironment());
  EXPECT_EQ(identity.tls->name, "tandem");
  EXPECT_EQ(identity.tls->certificate, "");
  Set("TLS_CERTIFICATE", File("certificate", own.certificate));
  EXPECT_THAT(IdentityOfEnvironment(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("go together")));
  Set("TLS_KEY", File("key", authority.certificate()));
  EXPECT_THAT(IdentityOfEnvironment(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("TANDEM_TLS_KEY: /")));
  Set("TLS_KEY", File("key", own.key));
  ASSERT_OK_AND_ASSIGN(identity, IdentityOfEnvironment());
  EXPECT_EQ(identity.tls->certificate, own.certificate);
}

TEST_F(IdentityOfEnvironmentTest, AKeyThatNoRouterTakesIsRefused) {
  Set("API_KEY", " sk-0123 ");
  ASSERT_OK_AND_ASSIGN(const ClientIdentity identity, IdentityOfEnvironment());
  EXPECT_EQ(identity.api_key, "sk-0123");
  Set("API_KEY", "sk 0123");
  EXPECT_THAT(IdentityOfEnvironment(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("TANDEM_API_KEY")));
}

}  // namespace
}  // namespace tandem
