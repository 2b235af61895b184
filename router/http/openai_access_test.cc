// Who may call, and what a browser gets.

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/http/openai_service_rig.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(OpenAiServiceTest, ThePageShowsTheCluster) {
  const HttpAnswer page = client_.Ask("GET", "/?ask=hello");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_THAT(page.headers.at("content-security-policy"), HasSubstr("connect-src 'self'"));
  EXPECT_THAT(page.body, AllOf(StartsWith("<!doctype html>"), EndsWith("</script>\n")));
  EXPECT_EQ(At(client_.Ask("GET", "/cluster").body, "/ready"), "false");
  RegisterWorker();
  const std::string cluster = client_.Ask("GET", "/cluster").body;
  EXPECT_EQ(At(cluster, "/ready"), "true");
  EXPECT_EQ(At(cluster, "/model"), "\"letters\"");
  EXPECT_EQ(At(cluster, "/workers/0"),
            R"({"id":"decode-0","role":"decode","state":"ready","running":0,"waiting":0,"queued_prompt_tokens":0,)"
            R"("pages":{"free":100},"total_pages":100,"prefill_tokens_per_second":0,"ms_per_token":0})");
}

constexpr char kKey[] = "sk-0123456789abcdef";

class KeyedOpenAiServiceTest : public OpenAiServiceTest {
 protected:
  KeyedOpenAiServiceTest() : OpenAiServiceTest(Keys()) {}
  static ApiKeys Keys() {
    setenv("TANDEM_TEST_API_KEY", kKey, /*overwrite=*/1);
    return *ApiKeys::Load({{.name = "alice", .key = {.env = "TANDEM_TEST_API_KEY"}, .max_active_requests = 1}});
  }
};

TEST_F(KeyedOpenAiServiceTest, RefusesCallsWithoutAKnownKey) {
  RegisterWorker();
  for (const std::string header : {"", "Authorization: Bearer sk-0123456789abcdeX\r\n"}) {
    for (const char* path : {kCompletions, kChat, "/tokenize", "/detokenize"}) {
      client_.SendRequest("POST", path, R"({"prompt":"a"})", header);
      const HttpAnswer answer = client_.Read();
      EXPECT_EQ(answer.status, 401) << path;
      EXPECT_EQ(At(answer.body, "/error/code"), "\"invalid_api_key\"");
      EXPECT_EQ(answer.headers.at("www-authenticate"), "Bearer");
    }
    for (const char* path : {"/v1/models", "/cluster"}) {
      client_.SendRequest("GET", path, "", header);
      EXPECT_EQ(client_.Read().status, 401);
    }
  }
  EXPECT_EQ(client_.Ask("GET", "/health", "").status, 200);
}

TEST_F(KeyedOpenAiServiceTest, AKeyOpensWhatItsOwnerMayTake) {
  RegisterWorker();
  const std::string header = absl::StrCat("Authorization: Bearer ", kKey, "\r\n");
  client_.SendRequest("POST", kCompletions, R"({"prompt":"a","max_tokens":1})", header);
  const RequestId leg = AwaitStarts(1)[0].id;
  HttpClient second(server_->address());
  second.SendRequest("POST", kCompletions, R"({"prompt":"a","max_tokens":1})", header);
  const HttpAnswer refused = second.Read();
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.body, HasSubstr("alice has 1 of 1 requests active"));
  Generate(leg, "x", LegFinish::kLength);
  EXPECT_EQ(client_.Read().status, 200);
}

}  // namespace
}  // namespace tandem
