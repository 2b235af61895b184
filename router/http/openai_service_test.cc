// OpenAI's calls over real sockets, with a core whose workers the test plays.

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/http/openai_service_rig.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

TEST_F(OpenAiServiceTest, AnswersACompletionAsOneBody) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"model":"letters","prompt":"abc","max_tokens":3})",
                      "X-Request-Id: my-id\r\n");
  const StartLeg start = AwaitStarts(1)[0];
  EXPECT_THAT(start.tokens, ElementsAre(0, 1, 2));
  EXPECT_EQ(start.name, "my-id");
  EXPECT_EQ(start.sampling.max_tokens, 3);
  Generate(start.id, "d");
  Generate(start.id, "ef", LegFinish::kLength);
  HttpAnswer answer = client_.Read();
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(At(answer.body, "/id"), "\"cmpl-my-id\"");
  EXPECT_EQ(At(answer.body, "/object"), "\"text_completion\"");
  EXPECT_EQ(At(answer.body, "/model"), "\"letters\"");
  EXPECT_EQ(At(answer.body, "/choices"), R"([{"index":0,"text":"def","logprobs":null,"finish_reason":"length"}])");
  EXPECT_EQ(At(answer.body, "/usage/total_tokens"), "6");
}

TEST_F(OpenAiServiceTest, StreamsAChatFromItsFirstToken) {
  RegisterWorker();
  client_.SendRequest("POST", kChat, R"({"messages":[{"role":"user","content":"ab"}],"stream":true,
      "stream_options":{"include_usage":true}})");
  const StartLeg start = AwaitStarts(1)[0];
  Generate(start.id, "c");
  EXPECT_EQ(client_.ReadHead().status, 200);
  std::string event = ReadEvents(1)[0];
  EXPECT_EQ(At(event, "/object"), "\"chat.completion.chunk\"");
  EXPECT_EQ(At(event, "/choices/0"),
            R"({"index":0,"delta":{"role":"assistant","content":"c"},"logprobs":null,"finish_reason":null})");
  EXPECT_EQ(At(event, "/usage"), "nothing");
  Generate(start.id, "d", LegFinish::kStop);
  std::vector<std::string> events = ReadEvents(3);
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_EQ(At(events[0], "/choices/0"),
            R"({"index":0,"delta":{"content":"d"},"logprobs":null,"finish_reason":"stop"})");
  EXPECT_EQ(At(events[1], "/choices"), "[]");
  EXPECT_EQ(At(events[1], "/usage"), R"({"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,)"
                                     R"("prompt_tokens_details":{"cached_tokens":0}})");
  EXPECT_EQ(events[2], "[DONE]");
  EXPECT_EQ(client_.ReadChunk(), "");
}

TEST_F(OpenAiServiceTest, ReasoningAndToolCallsHaveFieldsOfTheirOwn) {
  RegisterWorker();
  client_.SendRequest("POST", kChat, R"({"messages":[{"role":"user","content":"a"}],
      "tools":[{"type":"function","function":{"name":"f"}}]})");
  Generate(AwaitStarts(1)[0].id, "{why|so}}", LegFinish::kStop);
  const std::string body = client_.Read().body;
  EXPECT_EQ(At(body, "/choices/0/message/reasoning_content"), "\"why\"");
  EXPECT_EQ(At(body, "/choices/0/message/content"), "\"so\"");
  EXPECT_EQ(At(body, "/choices/0/message/tool_calls/1/type"), "\"function\"");
  EXPECT_EQ(At(body, "/choices/0/message/tool_calls/1/function"), R"({"name":"f","arguments":"{\"x\":1}"})");
  EXPECT_EQ(At(body, "/choices/0/finish_reason"), "\"tool_calls\"");
}

TEST_F(OpenAiServiceTest, StreamsReasoningAndToolCalls) {
  RegisterWorker();
  client_.SendRequest("POST", kChat, R"({"messages":[{"role":"user","content":"a"}],"stream":true,
      "tools":[{"type":"function","function":{"name":"f"}}]})");
  const StartLeg start = AwaitStarts(1)[0];
  Generate(start.id, "{w");
  EXPECT_EQ(client_.ReadHead().status, 200);
  EXPECT_EQ(At(ReadEvents(1)[0], "/choices/0/delta"), R"({"role":"assistant","content":"","reasoning_content":"w"})");
  Generate(start.id, "hy|");
  EXPECT_EQ(At(ReadEvents(1)[0], "/choices/0/delta/reasoning_content"), "\"hy\"");
  Generate(start.id, "}");
  const std::string first = ReadEvents(1)[0];
  EXPECT_EQ(At(first, "/choices/0/delta/tool_calls/0/index"), "0");
  EXPECT_EQ(At(first, "/choices/0/finish_reason"), "null");
  Generate(start.id, "}", LegFinish::kStop);
  const std::string last = ReadEvents(1)[0];
  EXPECT_EQ(At(last, "/choices/0/delta/tool_calls/0/index"), "1");
  EXPECT_EQ(At(last, "/choices/0/finish_reason"), "\"tool_calls\"");
}

TEST_F(OpenAiServiceTest, WithoutToolsWhatLooksLikeACallIsText) {
  RegisterWorker();
  client_.SendRequest("POST", kChat, R"({"messages":[{"role":"user","content":"a"}]})");
  Generate(AwaitStarts(1)[0].id, "}", LegFinish::kStop);
  const std::string body = client_.Read().body;
  EXPECT_THAT(At(body, "/choices/0/message/content"), HasSubstr("<tool_call>"));
  EXPECT_EQ(At(body, "/choices/0/finish_reason"), "\"stop\"");
}

TEST_F(OpenAiServiceTest, EveryPromptAndSampleIsAChoice) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"prompt":["a",[1]],"n":2,"max_tokens":1})");
  std::vector<StartLeg> starts = AwaitStarts(4);
  for (const StartLeg& start : starts) {
    Generate(start.id, start.tokens[0] == 0 ? "x" : "y", LegFinish::kLength);
  }
  HttpAnswer answer = client_.Read();
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(At(answer.body, absl::StrCat("/choices/", i, "/index")), absl::StrCat(i));
    EXPECT_EQ(At(answer.body, absl::StrCat("/choices/", i, "/text")), i < 2 ? "\"x\"" : "\"y\"");
  }
  EXPECT_EQ(At(answer.body, "/usage/prompt_tokens"), "2");
  EXPECT_EQ(At(answer.body, "/usage/completion_tokens"), "4");
}

TEST_F(OpenAiServiceTest, TellsLogprobsInBothForms) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"prompt":"a","max_tokens":2,"logprobs":1})");
  Generate(AwaitStarts(1)[0].id, "bc", LegFinish::kLength);
  EXPECT_EQ(At(client_.Read().body, "/choices/0/logprobs"),
            R"({"tokens":["b","c"],"token_logprobs":[-5E-1,-5E-1],"top_logprobs":[{"b":-5E-1},{"c":-5E-1}],)"
            R"("text_offset":[0,1]})");
  client_.SendRequest("POST", kChat,
                      R"({"messages":[{"role":"user","content":"a"}],"logprobs":true,"top_logprobs":1})");
  Generate(AwaitStarts(2)[1].id, "b", LegFinish::kStop);
  EXPECT_EQ(At(client_.Read().body, "/choices/0/logprobs"),
            R"({"content":[{"token":"b","logprob":-5E-1,"bytes":[98],"top_logprobs":[)"
            R"({"token":"b","logprob":-5E-1,"bytes":[98]}]}]})");
}

TEST_F(OpenAiServiceTest, UsageCanBeInEveryEvent) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions,
                      R"({"prompt":"abc","stream":true,"stream_options":{"continuous_usage_stats":true}})");
  const RequestId leg = AwaitStarts(1)[0].id;
  Generate(leg, "d");
  client_.ReadHead();
  EXPECT_EQ(At(ReadEvents(1)[0], "/usage/completion_tokens"), "1");
  Generate(leg, "e", LegFinish::kStop);
  EXPECT_EQ(At(ReadEvents(1)[0], "/usage/completion_tokens"), "2");
}

TEST_F(OpenAiServiceTest, AFailureBeforeTheFirstTokenIsAStatus) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"prompt":"abc","stream":true})");
  const RequestId leg = AwaitStarts(1)[0].id;
  core_.OnWorkerEvents(
      kDecode, {{{.id = leg, .error = MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerLost, "gone")}}});
  HttpAnswer answer = client_.Read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(At(answer.body, "/error/message"), HasSubstr("gave up after 0 retries"));
}

TEST_F(OpenAiServiceTest, ATimeoutEndsARequestWith504) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"prompt":"abc"})", "X-Request-Timeout: 0.5\r\n");
  EXPECT_EQ(AwaitStarts(1)[0].remaining, absl::Milliseconds(500));
  clock_.Advance(absl::Milliseconds(600));
  const HttpAnswer answer = client_.Read();
  EXPECT_EQ(answer.status, 504);
  EXPECT_EQ(At(answer.body, "/error/message"), "\"deadline passed\"");
  AwaitCancels(1);
  for (const char* wrong : {"0", "-1", "nan", "2s"}) {
    const HttpAnswer refused =
        client_.Ask("POST", kCompletions, R"({"prompt":"abc"})", absl::StrCat("X-Request-Timeout: ", wrong, "\r\n"));
    EXPECT_EQ(refused.status, 400) << wrong;
    EXPECT_EQ(At(refused.body, "/error/param"), "\"X-Request-Timeout\"") << wrong;
  }
}

TEST_F(OpenAiServiceTest, WorkersKnowTheTraceThatTheHeaderNames) {
  RegisterWorker();
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  client_.SendRequest("POST", kCompletions, R"({"prompt":"abc"})",
                      absl::StrCat("traceparent: 00-", trace, "-b7ad6b7169203331-01\r\n"));
  EXPECT_THAT(AwaitStarts(1)[0].trace_parent, testing::StartsWith("00-" + trace + "-"));
}

TEST_F(OpenAiServiceTest, ASessionOfTheHeaderStaysWhereItWas) {
  RegisterWorker();
  RegisterWorker("decode-1", Incarnation(12));
  std::set<Incarnation> used;
  size_t count = 0;
  for (int session = 0; session < 8; ++session) {
    std::set<Incarnation> of_session;
    for (int i = 0; i < 3; ++i) {
      client_.SendRequest(
          "POST", kCompletions, R"({"prompt":"abc","max_tokens":1})",
          absl::StrCat(session % 2 == 0 ? "X-Session-Id" : "X-Session-Affinity", ": s", session, "\r\n"));
      const auto [worker, start] = AwaitPlacedStarts(++count).back();
      of_session.insert(worker);
      Generate(start.id, "x", LegFinish::kLength, worker);
      EXPECT_EQ(client_.Read().status, 200);
    }
    EXPECT_EQ(of_session.size(), 1) << session;
    used.insert(of_session.begin(), of_session.end());
  }
  EXPECT_EQ(used.size(), 2);
}

TEST_F(OpenAiServiceTest, AFailureInAStreamIsAnErrorEventAndNotDone) {
  RegisterWorker();
  client_.SendRequest("POST", kCompletions, R"({"prompt":["a","b"],"stream":true})");
  std::vector<StartLeg> starts = AwaitStarts(2);
  Generate(starts[0].id, "x");
  client_.ReadHead();
  ReadEvents(1);
  core_.OnWorkerEvents(kDecode, {{{.id = starts[1].id, .error = absl::InternalError("it broke")}}});
  EXPECT_EQ(At(ReadEvents(1)[0], "/error/message"), "\"it broke\"");
  EXPECT_EQ(client_.ReadChunk(), "");
  AwaitCancels(1);  // The other prompt's request.
}

TEST_F(OpenAiServiceTest, AClientThatLeavesCancelsItsRequests) {
  RegisterWorker();
  {
    HttpClient client(server_->address());
    client.SendRequest("POST", kCompletions, R"({"prompt":["a","b"],"stream":true})");
    AwaitStarts(2);
  }
  AwaitCancels(2);
  EXPECT_TRUE(gate_.AwaitEmpty(absl::Seconds(10)));
}

TEST_F(OpenAiServiceTest, RefusesOverTheLimitWithRetryAfter) {
  RegisterWorker();
  HttpClient other(server_->address());
  other.SendRequest("POST", kCompletions, R"({"prompt":"a","n":8})");
  AwaitStarts(8);
  HttpAnswer answer = client_.Ask("POST", kCompletions, R"({"prompt":"a"})");
  EXPECT_EQ(answer.status, 429);
  EXPECT_THAT(answer.body, HasSubstr("8 requests are active"));
  EXPECT_EQ(answer.headers["retry-after"], "1");
  // Its text is not even looked at.
  EXPECT_EQ(client_.Ask("POST", kCompletions, "no JSON").status, 429);
}

TEST_F(OpenAiServiceTest, ACallThatCanNeverBeAdmittedIsNoCaseForARetry) {
  HttpAnswer answer = client_.Ask("POST", kCompletions, R"({"prompt":["a","b","c"],"n":3})");
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("3 prompts make 9 samples, and the router takes 8 at most"));
  EXPECT_THAT(answer.body, HasSubstr(R"("param":"prompt")"));
  answer = client_.Ask("POST", kCompletions, R"({"prompt":"a","n":9})");
  EXPECT_THAT(answer.body, HasSubstr("n: 1 prompt makes 9 samples, and the router takes 8 at most"));
  EXPECT_THAT(answer.body, HasSubstr(R"("param":"n")"));
}

TEST_F(OpenAiServiceTest, NamesWhatIsWrongWithARequest) {
  RegisterWorker();
  const std::pair<const char*, const char*> bodies[] = {{R"({"prompt":"a","model":"other"})", "\"model\""},
                                                        {R"({"prompt":"a","top_p":3})", "\"top_p\""},
                                                        {R"({"prompt":[99]})", "\"prompt\""},
                                                        {R"({"prompt":""})", "\"prompt\""},
                                                        {"{", "null"}};
  for (const auto& [body, field] : bodies) {
    HttpAnswer answer = client_.Ask("POST", kCompletions, body);
    EXPECT_THAT(answer.status, testing::AnyOf(400, 404)) << body;
    EXPECT_EQ(At(answer.body, "/error/param"), field) << body;
  }
  EXPECT_EQ(client_.Ask("POST", kCompletions, R"({"prompt":"a"})", "X-Request-Id: a b\r\n").status, 400);
}

TEST_F(OpenAiServiceTest, TextsTooLongForTheOwnersTurnAreReadElsewhere) {
  RegisterWorker();
  const std::string letters(300, 'a'), padding(LongTexts::kLongBytes, ' ');
  client_.SendRequest("POST", kCompletions, absl::StrCat(R"({"prompt":")", letters, "\"", padding, "}"));
  const StartLeg start = AwaitStarts(1)[0];
  EXPECT_THAT(start.tokens, SizeIs(300));
  Generate(start.id, "b", LegFinish::kStop);
  EXPECT_EQ(At(client_.Read().body, "/choices/0/text"), "\"b\"");
  EXPECT_EQ(client_.Ask("POST", kCompletions, absl::StrCat("{\"prompt\":5", padding, "}")).status, 400);
}

TEST_F(OpenAiServiceTest, TextsThatWaitWhenTheRouterStopsAreToldSo) {
  absl::Mutex mu;
  bool is_running = false, may_go_on = false;
  ASSERT_THAT(long_texts_.Run(1,
                              [&](const absl::Status&) {
                                absl::MutexLock lock(&mu);
                                is_running = true;
                                mu.Await(absl::Condition(&may_go_on));
                              }),
              IsOk());
  client_.SendRequest("POST", kCompletions,
                      absl::StrCat(R"({"prompt":"a")", std::string(LongTexts::kLongBytes, ' '), "}"));
  HttpClient other(server_->address());
  EXPECT_EQ(other.Ask("GET", "/health").status, 200);  // So that the text waits by now.
  {
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&is_running));
  }
  std::thread stopper([&] { long_texts_.Stop(); });
  // Its queue is closed once it takes nothing more.
  while (!absl::IsUnavailable(long_texts_.Run(0, [](const absl::Status&) {}))) {
  }
  {
    absl::MutexLock lock(&mu);
    may_go_on = true;
  }
  stopper.join();
  EXPECT_EQ(client_.Read().status, 503);
}

TEST_F(OpenAiServiceTest, TokenizesAndDetokenizes) {
  HttpAnswer answer = client_.Ask("POST", "/tokenize", R"({"prompt":"cab"})");
  EXPECT_EQ(answer.body, R"({"count":3,"max_model_len":500,"tokens":[2,0,1]})");
  EXPECT_EQ(At(client_.Ask("POST", "/tokenize", R"({"messages":[{"role":"user","content":"ab"}]})").body, "/tokens"),
            "[0,1]");
  EXPECT_EQ(client_.Ask("POST", "/detokenize", R"({"tokens":[2,0,1]})").body, R"({"prompt":"cab"})");
  EXPECT_EQ(client_.Ask("POST", "/detokenize", R"({"tokens":[29]})").status, 400);
  EXPECT_EQ(client_.Ask("POST", "/tokenize", R"({"prompt":"a","model":"other"})").status, 404);
}

TEST_F(OpenAiServiceTest, SaysWhatItServesAndHowItIs) {
  EXPECT_EQ(client_.Ask("GET", "/health").status, 200);
  EXPECT_EQ(client_.Ask("GET", "/ready").status, 503);
  EXPECT_EQ(At(client_.Ask("GET", "/v1/models/letters").body, "/max_model_len"), "500");
  RegisterWorker();
  EXPECT_EQ(client_.Ask("GET", "/ready").status, 200);  // The worker's pool holds less than the model could use.
  EXPECT_EQ(At(client_.Ask("GET", "/v1/models").body, "/data/0/id"), "\"letters\"");
  EXPECT_EQ(At(client_.Ask("GET", "/v1/models/letters").body, "/max_model_len"), "400");
  EXPECT_EQ(client_.Ask("GET", "/v1/models/%6Cetter%73").status, 200);
  EXPECT_EQ(client_.Ask("GET", "/v1/models/other").status, 404);
  EXPECT_THAT(client_.Ask("GET", "/metrics").body, HasSubstr("tandem_active_requests"));
  HttpAnswer head = client_.Ask("HEAD", "/metrics");
  EXPECT_EQ(head.status, 200);
  EXPECT_THAT(head.body, IsEmpty());
  EXPECT_NE(At(client_.Ask("GET", "/version").body, "/version"), "nothing");
}

TEST_F(OpenAiServiceTest, TellsAWrongMethodFromAWrongPath) {
  HttpAnswer answer = client_.Ask("GET", kCompletions);
  EXPECT_EQ(answer.status, 405);
  EXPECT_EQ(answer.headers["allow"], "POST");
  EXPECT_EQ(client_.Ask("DELETE", "/v1/models").headers["allow"], "GET, HEAD");
  EXPECT_EQ(client_.Ask("POST", "/v2/completions", "{}").status, 404);
}

TEST_F(OpenAiServiceTest, RefusesNewCallsWhenItDrains) {
  RegisterWorker();
  EXPECT_EQ(client_.Ask("GET", "/ready").status, 200);
  gate_.Close();
  EXPECT_EQ(client_.Ask("GET", "/ready").status, 503);
  EXPECT_EQ(client_.Ask("POST", kCompletions, R"({"prompt":"a"})").status, 503);
}

}  // namespace
}  // namespace tandem
