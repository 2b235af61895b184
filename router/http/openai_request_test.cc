#include "router/http/openai_request.h"

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/http/openai_error.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

absl::StatusOr<OpenAiRequest> ParseChat(const std::string& fields) {
  return ParseOpenAiRequest(OpenAiEndpoint::kChatCompletions,
                            absl::StrCat(R"({"messages":[{"role":"user","content":"hi"}])", fields, "}"));
}

absl::StatusOr<OpenAiRequest> ParseCompletion(const std::string& body) {
  return ParseOpenAiRequest(OpenAiEndpoint::kCompletions, body);
}

TEST(OpenAiRequestTest, ReadsEveryField) {
  ASSERT_OK_AND_ASSIGN(OpenAiRequest request, ParseChat(R"(,"model":"m","stream":true,
      "stream_options":{"include_usage":true,"continuous_usage_stats":true},"max_completion_tokens":9,"min_tokens":2,
      "temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"presence_penalty":1,"frequency_penalty":-1,
      "repetition_penalty":1.1,"seed":-5,"stop":["a","b"],"stop_token_ids":[7],"ignore_eos":true,
      "logit_bias":{"12":-100},"n":3,"logprobs":true,"top_logprobs":4,"priority":5)"));
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
  EXPECT_TRUE(request.continuous_usage);
  ASSERT_THAT(request.prompts, SizeIs(1));
  const RawRequest& raw = request.prompts[0];
  EXPECT_EQ(raw.model, "m");
  EXPECT_EQ(raw.num_samples, 3);
  EXPECT_EQ(raw.priority, 5);
  EXPECT_TRUE(raw.has_seed);
  EXPECT_THAT(raw.stops, ElementsAre("a", "b"));
  const SamplingParams& sampling = raw.sampling;
  EXPECT_EQ(sampling.max_tokens, 9);
  EXPECT_EQ(sampling.min_tokens, 2);
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_p, 0.9f);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.1f);
  EXPECT_EQ(sampling.presence_penalty, 1);
  EXPECT_EQ(sampling.frequency_penalty, -1);
  EXPECT_EQ(sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-5));
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(7));
  EXPECT_THAT(sampling.logit_bias, ElementsAre(Pair(12, -100)));
  EXPECT_EQ(sampling.logprobs, 4);
}

// The fields that vllm/benchmarks/lib/endpoint_request_func.py sends.
TEST(OpenAiRequestTest, ReadsWhatVllmBenchServeSends) {
  ASSERT_OK_AND_ASSIGN(
      const OpenAiRequest completion,
      ParseCompletion(R"({"model":"m","prompt":"hello","repetition_penalty":1.0,"max_tokens":128,"logprobs":null,
                          "stream":true,"stream_options":{"include_usage":true},"ignore_eos":true})"));
  ASSERT_OK_AND_ASSIGN(const OpenAiRequest chat,
                       ParseOpenAiRequest(OpenAiEndpoint::kChatCompletions,
                                          R"({"model":"m","messages":[{"role":"user","content":[{"type":"text","text":
                                              "hello"}]}],"max_completion_tokens":128,"stream":true,
                                              "stream_options":{"include_usage":true},"ignore_eos":true})"));
  for (const OpenAiRequest* request : {&completion, &chat}) {
    EXPECT_TRUE(request->stream && request->include_usage);
    ASSERT_THAT(request->prompts, SizeIs(1));
    const SamplingParams& sampling = request->prompts[0].sampling;
    EXPECT_EQ(sampling.max_tokens, 128);
    EXPECT_EQ(sampling.repetition_penalty, 1);
    EXPECT_EQ(sampling.logprobs, std::nullopt);
    EXPECT_TRUE(sampling.ignore_eos);
  }
  EXPECT_EQ(std::get<std::string>(completion.prompts[0].prompt), "hello");
  EXPECT_EQ(std::get<ChatPrompt>(chat.prompts[0].prompt).messages[0].content, "hello");
}

TEST(OpenAiRequestTest, HasOpenAisDefaults) {
  ASSERT_OK_AND_ASSIGN(OpenAiRequest chat,
                       ParseChat(R"(,"max_tokens":null,"seed":null,"stop":null,"user":"u","x":[1])"));
  EXPECT_EQ(chat.prompts[0].sampling.temperature, 1);
  EXPECT_EQ(chat.prompts[0].sampling.max_tokens, 0);  // Up to the context.
  EXPECT_FALSE(chat.prompts[0].has_seed);
  EXPECT_FALSE(chat.prompts[0].sampling.logprobs.has_value());
  EXPECT_FALSE(chat.stream);
  ASSERT_OK_AND_ASSIGN(OpenAiRequest completion, ParseCompletion(R"({"prompt":"a","top_k":-1,"logprobs":0})"));
  EXPECT_EQ(completion.prompts[0].sampling.max_tokens, 16);
  EXPECT_EQ(completion.prompts[0].sampling.top_k, 0);
  EXPECT_EQ(completion.prompts[0].sampling.logprobs, 0);
}

TEST(OpenAiRequestTest, ReadsEveryFormOfPrompt) {
  using Ids = std::vector<TokenId>;
  ASSERT_OK_AND_ASSIGN(OpenAiRequest ids, ParseCompletion(R"({"prompt":[1,2.0,3]})"));
  ASSERT_THAT(ids.prompts, SizeIs(1));
  EXPECT_THAT(std::get<Ids>(ids.prompts[0].prompt), ElementsAre(1, 2, 3));
  ASSERT_OK_AND_ASSIGN(OpenAiRequest mixed, ParseCompletion(R"({"prompt":["a",[4,5]],"n":2})"));
  ASSERT_THAT(mixed.prompts, SizeIs(2));
  EXPECT_EQ(std::get<std::string>(mixed.prompts[0].prompt), "a");
  EXPECT_THAT(std::get<Ids>(mixed.prompts[1].prompt), ElementsAre(4, 5));
  EXPECT_EQ(mixed.prompts[1].num_samples, 2);
}

TEST(OpenAiRequestTest, ReadsMessagesOfTextParts) {
  ASSERT_OK_AND_ASSIGN(OpenAiRequest request, ParseOpenAiRequest(OpenAiEndpoint::kChatCompletions, R"({"messages":[
      {"role":"system","content":"s"},{"role":"assistant","content":null},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})"));
  const auto& messages = std::get<ChatPrompt>(request.prompts[0].prompt).messages;
  ASSERT_THAT(messages, SizeIs(3));
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "");
  EXPECT_EQ(messages[2].content, "a\nb");
}

TEST(OpenAiRequestTest, ReadsToolsAndWhatBecameOfCalls) {
  constexpr char kBody[] = R"({"messages":[{"role":"user","content":"x"},
      {"role":"assistant","content":null,"reasoning_content":"r","tool_calls":[{"id":"c1","type":"function",
          "function":{"name":"f","arguments":"{\"a\":1}"}}]},
      {"role":"tool","tool_call_id":"c1","content":"2"}],
      "tools":[{"type":"function","function":{"name":"f"}}],"chat_template_kwargs":{"enable_thinking":false}})";
  ASSERT_OK_AND_ASSIGN(OpenAiRequest request, ParseOpenAiRequest(OpenAiEndpoint::kChatCompletions, kBody));
  EXPECT_TRUE(request.calls_tools);
  const auto& chat = std::get<ChatPrompt>(request.prompts[0].prompt);
  EXPECT_EQ(chat.tools, R"([{"type":"function","function":{"name":"f"}}])");
  EXPECT_EQ(chat.variables, R"({"enable_thinking":false})");
  ASSERT_THAT(chat.messages[1].tool_calls, SizeIs(1));
  EXPECT_EQ(chat.messages[1].tool_calls[0].arguments, R"({"a":1})");
  EXPECT_EQ(chat.messages[1].reasoning, "r");
  EXPECT_EQ(chat.messages[2].tool_call_id, "c1");
}

TEST(OpenAiRequestTest, ToolChoiceNoneLeavesTheToolsOut) {
  ASSERT_OK_AND_ASSIGN(OpenAiRequest request,
                       ParseChat(R"(,"tools":[{"function":{"name":"f"}}],"tool_choice":"none")"));
  EXPECT_FALSE(request.calls_tools);
  EXPECT_EQ(std::get<ChatPrompt>(request.prompts[0].prompt).tools, "");
}

TEST(OpenAiRequestTest, FormatsOfAnswersAreTakenAsTheyWereSent) {
  using Kind = OutputFormat::Kind;
  const struct {
    const char* fields;
    Kind kind;
    const char* text;
  } cases[] = {
      {R"(,"response_format":{"type":"json_object"})", Kind::kJsonSchema, R"({"type":"object"})"},
      {R"(,"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{"a":[1]}}})",
       Kind::kJsonSchema, R"({"a":[1]})"},
      {R"(,"structured_outputs":{"json":{"type":"object"}})", Kind::kJsonSchema, R"({"type":"object"})"},
      {R"(,"structured_outputs":{"json":"{\"type\": \"object\"}"})", Kind::kJsonSchema, R"({"type": "object"})"},
      {R"(,"structured_outputs":{"json_object":true})", Kind::kJsonSchema, R"({"type":"object"})"},
      {R"(,"structured_outputs":{"regex":"a+"})", Kind::kRegex, "a+"},
      {R"(,"structured_outputs":{"grammar":"start: \"a\""})", Kind::kLark, "start: \"a\""},
      {R"(,"structured_outputs":{"choice":["yes","no \"\n\u007f"],"disable_any_whitespace":false})", Kind::kLark,
       R"(start: "yes" | "no \"\n\u007f")"}};
  for (const auto& c : cases) {
    ASSERT_OK_AND_ASSIGN(OpenAiRequest request, ParseChat(c.fields));
    const auto& format = request.prompts[0].sampling.format;
    ASSERT_NE(format, nullptr) << c.fields;
    EXPECT_EQ(format->kind, c.kind) << c.fields;
    EXPECT_EQ(format->text, c.text);
  }
  ASSERT_OK_AND_ASSIGN(OpenAiRequest text, ParseChat(R"(,"response_format":{"type":"text"})"));
  EXPECT_EQ(text.prompts[0].sampling.format, nullptr);
}

struct Wrong {
  std::string name, fields, message;
};
class WrongChatTest : public testing::TestWithParam<Wrong> {};

TEST_P(WrongChatTest, IsRefusedWithTheFieldsName) {
  EXPECT_THAT(ParseChat(GetParam().fields),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, WrongChatTest,
    testing::Values(
        Wrong{"Temperature", R"(,"temperature":"hot")", "temperature: expected a number, got a string"},
        Wrong{"Stream", R"(,"stream":1)", "stream: expected true or false, got an integer"},
        Wrong{"Fraction", R"(,"max_tokens":1.5)", "max_tokens: expected an integer, got a number"},
        Wrong{"NoTokens", R"(,"max_tokens":0)", "max_tokens: must be at least 1, got 0"},
        Wrong{"Huge", R"(,"n":99999999999)", "n: out of range, got 99999999999"},
        Wrong{"LeastOfAll", R"(,"n":-9223372036854775808)", "n: out of range"},
        Wrong{"NoSamples", R"(,"n":0)", "n: must be at least 1, got 0"},
        Wrong{"OldTools", R"(,"functions":[])", "functions: is not supported: send tools"},
        Wrong{"HugeUnsigned", R"(,"n":18446744073709551615)", "n: expected an integer"},
        Wrong{"StreamOptions", R"(,"stream_options":[])", "stream_options: expected an object, got an array"},
        Wrong{"IncludeUsage", R"(,"stream_options":{"include_usage":"y"})",
              "stream_options.include_usage: expected true or false"},
        Wrong{"Stop", R"(,"stop":[1])", "stop: expected an array of strings, got an integer"},
        Wrong{"Bias", R"(,"logit_bias":{"x":1})", "logit_bias: \"x\" is no token id"},
        Wrong{"BiasValue", R"(,"logit_bias":{"1":"x"})", "logit_bias: expected numbers"},
        Wrong{"StopIds", R"(,"stop_token_ids":["x"])", "stop_token_ids[0]: expected a token id, got a string"},
        Wrong{"Logprobs", R"(,"top_logprobs":2)", "top_logprobs: needs logprobs"},
        Wrong{"ToolWithoutFunction", R"(,"tools":[{"type":"function"}])", "tools[0].function: expected an object"},
        Wrong{"ToolWithoutName", R"(,"tools":[{"function":{}}])", "tools[0].function.name: is missing"},
        Wrong{"ForcedTool", R"(,"tools":[{"function":{"name":"f"}}],"tool_choice":"required")",
              "tool_choice: only \"auto\" and \"none\""},
        Wrong{"TemplateVariables", R"(,"chat_template_kwargs":1)", "chat_template_kwargs: expected an object"},
        Wrong{"Format", R"(,"response_format":{"type":"xml"})",
              "response_format: type must be text, json_object or json_schema, got \"xml\""},
        Wrong{"FormatType", R"(,"response_format":"json")", "response_format: expected an object, got a string"},
        Wrong{"NoNamedSchema", R"(,"response_format":{"type":"json_schema"})",
              "response_format: json_schema is missing"},
        Wrong{"NoSchema", R"(,"response_format":{"type":"json_schema","json_schema":{"name":"x"}})",
              "response_format: json_schema.schema is missing"},
        Wrong{"SchemaType", R"(,"response_format":{"type":"json_schema","json_schema":{"schema":true}})",
              "response_format.json_schema.schema: expected an object, got a boolean"},
        Wrong{"TwoFormats", R"(,"structured_outputs":{"regex":"a","grammar":"start: \"a\""})",
              "structured_outputs: set one of"},
        Wrong{"NoFormat", R"(,"structured_outputs":{})", "structured_outputs: set one of"},
        Wrong{"BothFormats", R"(,"response_format":{"type":"json_object"},"structured_outputs":{"regex":"a"})",
              "structured_outputs: there is a response_format already"},
        Wrong{"Choice", R"(,"structured_outputs":{"choice":["a",1]})",
              "structured_outputs.choice: expected an array of strings, got an integer"},
        Wrong{"SpaceInFormat", R"(,"structured_outputs":{"json":{},"whitespace_pattern":" "})",
              "structured_outputs.whitespace_pattern: is not supported"},
        Wrong{"OldFormat", R"(,"guided_json":{})", "guided_json: is not supported: send structured_outputs"},
        Wrong{"Syntax", R"(,"n":)", "the body is no valid JSON"}),
    [](const auto& info) { return info.param.name; });

TEST(OpenAiRequestTest, RefusesWrongMessagesAndPrompts) {
  const std::pair<const char*, const char*> chats[] = {
      {"{}", "messages: is missing"},
      {"[]", "the body must be a JSON object"},
      {R"({"messages":{}})", "messages: expected an array of messages, got an object"},
      {R"({"messages":[{"content":"x"}]})", "messages[0].role: is missing"},
      {R"({"messages":[{"role":"user","content":"x"},{"role":"user","content":5}]})",
       "messages[1].content: expected a string or an array of text parts, got an integer"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
       "messages[0].content: only parts of type \"text\" can be read, got \"image_url\""}};
  for (const auto& [body, message] : chats) {
    EXPECT_THAT(ParseOpenAiRequest(OpenAiEndpoint::kChatCompletions, body),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
  const std::pair<const char*, const char*> completions[] = {
      {"{}", "prompt: is missing"},
      {R"({"prompt":[]})", "prompt: must not be empty"},
      {R"({"prompt":5})", "prompt: expected a string, token ids, or an array of these, got an integer"},
      {R"({"prompt":["a",5]})", "prompt[1]: expected a string or token ids, got an integer"},
      {R"({"prompt":[1,-2]})", "prompt: -2 is no token id"},
      {R"({"prompt":[1,"a"]})", "prompt[1]: expected a token id, got a string"},
      {R"({"prompt":"a","echo":true})", "echo: is not supported"},
      {R"({"prompt":"a","best_of":3})", "best_of: is not supported"},
      {R"({"prompt":"a","suffix":"s"})", "suffix: is not supported"}};
  for (const auto& [body, message] : completions) {
    EXPECT_THAT(ParseCompletion(body), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }
}

// Each prompt of a list gets a copy of them.
TEST(OpenAiRequestTest, RefusesListsThatAreTooLong) {
  std::string ids = "1", stops = "\"a\"", biases = "\"0\":1";
  for (int i = 1; i < 1025; ++i) {
    absl::StrAppend(&ids, ",1");
    absl::StrAppend(&stops, ",\"a\"");
    absl::StrAppend(&biases, ",\"", i, "\":1");
  }
  for (const std::string& field :
       {absl::StrCat("\"stop_token_ids\":[", ids, "]"), absl::StrCat("\"stop\":[", stops, "]"),
        absl::StrCat("\"logit_bias\":{", biases, "}")}) {
    EXPECT_THAT(ParseCompletion(absl::StrCat("{\"prompt\":\"a\",", field, "}")),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(": at most 1024")));
  }
}

TEST(OpenAiRequestTest, RefusesJsonThatIsTooDeep) {
  EXPECT_THAT(ParseCompletion(absl::StrCat("{\"prompt\":", std::string(1000, '['))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the body is no valid JSON")));
}

TEST(OpenAiErrorTest, HasStatusFieldAndCode) {
  HttpResponse response = OpenAiError(absl::InvalidArgumentError("sampling.top_p: must be over 0"));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(
      response.body,
      R"({"error":{"message":"top_p: must be over 0","type":"invalid_request_error","param":"top_p","code":null}})");
  EXPECT_THAT(OpenAiError(absl::InvalidArgumentError("chat.messages: \"x\" is wrong")).body,
              AllOf(HasSubstr(R"("message":"messages: \"x\" is wrong")"), HasSubstr(R"("param":"messages")")));
  EXPECT_THAT(OpenAiErrorBody(absl::InternalError("The model: it broke")), HasSubstr(R"("param":null)"));
  response = OpenAiError(absl::NotFoundError("model: \"x\" is not served"));
  EXPECT_EQ(response.status, 404);
  EXPECT_THAT(response.body, HasSubstr(R"("code":"model_not_found")"));
}

TEST(OpenAiErrorTest, SaysWhenToTryAgain) {
  HttpResponse response = OpenAiError(MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                                                "the router is full", absl::Milliseconds(250)));
  EXPECT_EQ(response.status, 429);
  EXPECT_THAT(response.headers, ElementsAre(Pair("Retry-After", "1"), Pair("Retry-After-Ms", "250")));
  EXPECT_THAT(response.body, HasSubstr(R"("type":"rate_limit_error")"));
}

TEST(OpenAiErrorTest, EveryCodeHasAStatusThatClientsUnderstand) {
  const std::pair<absl::StatusCode, int> expected[] = {
      {absl::StatusCode::kUnavailable, 503},     {absl::StatusCode::kDeadlineExceeded, 504},
      {absl::StatusCode::kInternal, 500},        {absl::StatusCode::kAlreadyExists, 409},
      {absl::StatusCode::kUnauthenticated, 401}, {absl::StatusCode::kPermissionDenied, 403},
      {absl::StatusCode::kUnimplemented, 501},   {absl::StatusCode::kDataLoss, 500}};
  for (const auto& [code, status] : expected) EXPECT_EQ(OpenAiError(absl::Status(code, "x")).status, status);
}

}  // namespace
}  // namespace tandem
