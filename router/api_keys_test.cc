#include "router/api_keys.h"

#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kAlice[] = "sk-alice-0123456789", kBob[] = "sk-bob-01234567890";

class ApiKeysTest : public testing::Test {
 protected:
  ApiKeysTest() {
    std::ofstream(path_) << kAlice << "\nnot the key\n";
    setenv("TANDEM_TEST_KEY_OF_BOB", kBob, /*overwrite=*/1);
  }
  ~ApiKeysTest() override { unsetenv("TANDEM_TEST_KEY_OF_BOB"); }
  std::vector<ApiKeySettings> Both() const {
    return {{.name = "alice", .key = {.file = path_, .where = "t.yaml:4"}, .is_operator = true},
            {.name = "bob", .key = {.env = "TANDEM_TEST_KEY_OF_BOB", .where = "t.yaml:5"}}};
  }
  const std::string path_ = testing::TempDir() + "/tandem_key_of_alice";
};

TEST_F(ApiKeysTest, SayWhoCalls) {
  ASSERT_OK_AND_ASSIGN(const ApiKeys keys, ApiKeys::Load(Both()));
  EXPECT_THAT(keys.Check(std::string("Bearer ") + kAlice), IsOkAndHolds(0));
  EXPECT_THAT(keys.Check(std::string("bearer  ") + kBob + " "), IsOkAndHolds(1));
  EXPECT_EQ(keys.tenants()[1].name, "bob");
}

TEST_F(ApiKeysTest, RefuseEverythingElse) {
  ASSERT_OK_AND_ASSIGN(const ApiKeys keys, ApiKeys::Load(Both()));
  const std::string alice = kAlice;
  for (const std::string& wrong :
       {std::string(), std::string("Bearer "), "Basic " + alice, alice, "Bearer " + alice + "x",
        "Bearer " + alice.substr(1), "Bearer " + alice.substr(0, alice.size() - 1), "Bearer " + alice + alice}) {
    EXPECT_THAT(keys.Check(wrong), StatusIs(absl::StatusCode::kUnauthenticated, Not(HasSubstr("sk-")))) << wrong;
  }
}

TEST_F(ApiKeysTest, OnlyOperatorsChangeTheCluster) {
  ASSERT_OK_AND_ASSIGN(const ApiKeys keys, ApiKeys::Load(Both()));
  EXPECT_THAT(keys.CheckOperator(std::string("Bearer ") + kAlice), IsOk());
  EXPECT_THAT(keys.CheckOperator(std::string("Bearer ") + kBob),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("bob is no operator's")));
  EXPECT_THAT(keys.CheckOperator(""), StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("Bearer")));
}

TEST_F(ApiKeysTest, WithoutAnyEverybodyMayCall) {
  const ApiKeys keys;
  EXPECT_THAT(keys.Check(""), IsOkAndHolds(kAnyone));
  EXPECT_THAT(keys.CheckOperator("Bearer x"), IsOk());
}

TEST_F(ApiKeysTest, ErrorsNameTheLineAndNotTheKey) {
  const auto error = [&](auto change) {
    std::vector<ApiKeySettings> settings = Both();
    change(settings);
    return std::string(ApiKeys::Load(settings).status().message());
  };
  EXPECT_THAT(error([](auto& s) { s[0].key.file = "/no/such"; }),
              AllOf(HasSubstr("t.yaml:4: router.api_keys: alice"), HasSubstr("/no/such")));
  EXPECT_THAT(error([](auto& s) { s[1].key.env = "TANDEM_NO_SUCH"; }), HasSubstr("no variable TANDEM_NO_SUCH"));
  setenv("TANDEM_TEST_KEY_OF_BOB", "short", 1);
  EXPECT_THAT(error([](auto&) {}), AllOf(HasSubstr("16 to 512 characters, this one 5"), Not(HasSubstr("short"))));
  setenv("TANDEM_TEST_KEY_OF_BOB", "0123456789 abcdefgh", 1);
  EXPECT_THAT(error([](auto&) {}), HasSubstr("without spaces"));
  setenv("TANDEM_TEST_KEY_OF_BOB", kAlice, 1);
  EXPECT_THAT(error([](auto&) {}), AllOf(HasSubstr("t.yaml:5"), HasSubstr("the same key"), Not(HasSubstr("sk-"))));
}

}  // namespace
}  // namespace tandem
