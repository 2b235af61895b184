#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "router/admission.h"
#include "router/output_text.h"
#include "router/request_builder.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(AdmissionTest, RefusesOverTheLimitWithARetryHint) {
  Admission admission(3, {});
  EXPECT_THAT(admission.Admit(kAnyone, 2, kNow), IsOk());
  absl::Status refused = admission.Admit(kAnyone, 2, kNow);
  EXPECT_EQ(GetErrorReason(refused), ErrorReason::kQueueFull);
  EXPECT_GT(GetRetryAfter(refused).value(), absl::ZeroDuration());
  EXPECT_THAT(admission.Admit(kAnyone, 1, kNow), IsOk());
  admission.Release(kAnyone, kNow);
  admission.Release(kAnyone, kNow);
  EXPECT_THAT(admission.Admit(kAnyone, 2, kNow), IsOk());
}

TEST(AdmissionTest, SaysWithoutTheOwnerThatAllPlacesAreTaken) {
  Admission admission(2, {});
  EXPECT_THAT(admission.Admit(kAnyone, 1, kNow), IsOk());
  EXPECT_THAT(admission.CheckRoom(), IsOk());
  EXPECT_THAT(admission.Admit(kAnyone, 1, kNow), IsOk());
  const absl::Status full = admission.CheckRoom();
  EXPECT_EQ(GetErrorReason(full), ErrorReason::kQueueFull);
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("2 of 2 requests are active")));
  EXPECT_TRUE(GetRetryAfter(full).has_value());
  admission.Release(kAnyone, kNow);
  EXPECT_THAT(admission.CheckRoom(), IsOk());
}

TEST(AdmissionTest, TheHintFollowsThePaceOfReleases) {
  Admission slow(1, {}), fast(1, {});
  for (int i = 0; i < 100; ++i) {
    ASSERT_THAT(slow.Admit(kAnyone, 1, kNow), IsOk());
    ASSERT_THAT(fast.Admit(kAnyone, 1, kNow), IsOk());
    slow.Release(kAnyone, kNow + i * absl::Seconds(2));
    fast.Release(kAnyone, kNow + i * absl::Milliseconds(20));
  }
  ASSERT_THAT(slow.Admit(kAnyone, 1, kNow), IsOk());
  ASSERT_THAT(fast.Admit(kAnyone, 1, kNow), IsOk());
  EXPECT_GT(GetRetryAfter(slow.Admit(kAnyone, 1, kNow + absl::Seconds(198))).value(),
            GetRetryAfter(fast.Admit(kAnyone, 1, kNow + absl::Seconds(2))).value());
}

const Tokenizer& SmolLm2() {
  static const Tokenizer* const tokenizer = (*(*Checkpoint::Open(SmolLm2Path()))->LoadTokenizer()).release();
  return *tokenizer;
}

std::string Collect(const std::string& text, std::vector<std::string> stops, bool* stopped = nullptr) {
  OutputText output(SmolLm2(), std::move(stops));
  std::string all;
  const std::vector<TokenId> tokens = SmolLm2().Encode(text).value();
  for (TokenId token : tokens) {
    if (output.Append(token, /*check_stops=*/true)) {
      if (stopped != nullptr) *stopped = true;
      return all + output.Take();
    }
    all += output.Take();
  }
  output.Finish();
  return all + output.Take();
}

ApiKeySettings TenantOf(const std::string& name, double weight, int64_t limit = 0) {
  return {.name = name, .max_active_requests = limit, .weight = weight};
}

TEST(AdmissionTest, ATenantHasNoMoreThanItsLimit) {
  Admission admission(100, {TenantOf("a", 1, 3), TenantOf("b", 1)});
  EXPECT_THAT(admission.Admit(0, 4, kNow), StatusIs(absl::StatusCode::kInvalidArgument));  // Never.
  EXPECT_THAT(admission.Admit(0, 3, kNow), IsOk());
  const absl::Status refused = admission.Admit(0, 1, kNow);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("a has 3 of 3 requests active")));
  EXPECT_TRUE(GetRetryAfter(refused).has_value());
  EXPECT_THAT(admission.Admit(1, 10, kNow), IsOk());
  admission.Release(0, kNow);
  EXPECT_THAT(admission.Admit(0, 1, kNow), IsOk());
}

TEST(AdmissionTest, WhoeverIsUnderItsShareFindsPlacesThatOthersCannotTake) {
  Admission admission(100, {TenantOf("greedy", 3), TenantOf("small", 1)});
  int taken = 0;
  while (admission.Admit(0, 1, kNow).ok()) ++taken;
  EXPECT_EQ(taken, 80);  // More than its share of 75, but not the last fifth.
  for (int i = 0; i < 20; ++i) EXPECT_THAT(admission.Admit(1, 1, kNow), IsOk());
  EXPECT_THAT(admission.Admit(1, 1, kNow), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("router is full")));
  // What comes free goes to the one under its share, until it has all of it.
  for (int i = 0; i < 6; ++i) admission.Release(0, kNow);
  for (int i = 0; i < 5; ++i) EXPECT_THAT(admission.Admit(1, 1, kNow), IsOk());
  EXPECT_THAT(admission.Admit(1, 1, kNow),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("its share is 25")));
  EXPECT_THAT(admission.Admit(0, 1, kNow), IsOk());
}

TEST(OutputTextTest, PassesTextThrough) { EXPECT_EQ(Collect("Hello, 日本 🙂!", {}), "Hello, 日本 🙂!"); }

TEST(OutputTextTest, EndsBeforeTheEarliestStopString) {
  bool stopped = false;
  EXPECT_EQ(Collect("one two three four", {"three", "two th"}, &stopped), "one ");
  EXPECT_TRUE(stopped);
}

TEST(OutputTextTest, ReleasesWhatOnlyLookedLikeAStopString) {
  bool stopped = false;
  EXPECT_EQ(Collect("abc abd", {"abx", "d!"}, &stopped), "abc abd");
  EXPECT_FALSE(stopped);
}

class RequestBuilderTest : public testing::Test {
 protected:
  RequestBuilder builder_{"smollm2", SmolLm2(), nullptr};
  RawRequest raw_ = {.prompt = std::string("Hello")};
};

TEST_F(RequestBuilderTest, TokenisesTextAndDrawsWhatIsMissing) {
  ASSERT_OK_AND_ASSIGN(Request request, builder_.Build(raw_));
  EXPECT_EQ(SmolLm2().Decode(request.prompt), "Hello");
  EXPECT_THAT(request.name, HasSubstr("req-"));
  EXPECT_EQ(request.num_samples, 1);
}

TEST_F(RequestBuilderTest, KeepsASeedThatWasGiven) {
  raw_.has_seed = true;
  raw_.sampling.seed = 0;
  ASSERT_OK_AND_ASSIGN(Request request, builder_.Build(raw_));
  EXPECT_EQ(request.sampling.seed, 0);
}

TEST_F(RequestBuilderTest, TiersSetPriorityAndLimit) {
  const RequestBuilder builder(
      "smollm2", SmolLm2(), nullptr,
      {{.name = "default", .priority = 1},
       {.name = "priority", .priority = 60, .ttft = absl::Seconds(2), .tpot = absl::Milliseconds(50)}});
  for (const char* name : {"", "auto", "default"}) {
    raw_.service_tier = name;
    ASSERT_OK_AND_ASSIGN(const Request request, builder.Build(raw_));
    EXPECT_EQ(request.priority, 1);
    EXPECT_EQ(request.ttft_limit, absl::InfiniteDuration());
  }
  raw_.service_tier = "priority";
  raw_.priority = 50;
  ASSERT_OK_AND_ASSIGN(const Request request, builder.Build(raw_));
  EXPECT_EQ(request.priority, 100);  // As high as there is.
  EXPECT_EQ(request.ttft_limit, absl::Seconds(2));
  EXPECT_EQ(request.tpot_limit, absl::Milliseconds(50));
  raw_.service_tier = "flex";
  EXPECT_THAT(builder.Build(raw_), StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("there is no \"flex\"; there are: default, priority")));
  EXPECT_THAT(builder_.Build(raw_), IsOk());  // Without tiers it is not looked at.
}

TEST_F(RequestBuilderTest, RendersChatWithTheModelsTemplate) {
  auto checkpoint = *Checkpoint::Open(SmolLm2Path());
  ASSERT_OK_AND_ASSIGN(auto chat_template, ChatTemplate::Create(checkpoint->chat_template(), "", ""));
  RequestBuilder builder("smollm2", SmolLm2(), chat_template.get());
  raw_.prompt = ChatPrompt{.messages = {{"user", "Hi"}}};
  ASSERT_OK_AND_ASSIGN(Request request, builder.Build(raw_));
  EXPECT_EQ(SmolLm2().Decode(request.prompt, /*with_special=*/true),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(RequestBuilderTest, KnowsWhereReasoningMayStandBesideAFormat) {
  using Reasoning = OutputFormat::Reasoning;
  const auto reasoning = [](const char* source, decltype(RawRequest::prompt) prompt) {
    auto chat_template = *ChatTemplate::Create(source, "", "");
    RawRequest raw{.prompt = std::move(prompt)};
    raw.sampling.format = std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kRegex, "a"});
    auto request = RequestBuilder("smollm2", SmolLm2(), chat_template.get()).Build(std::move(raw));
    EXPECT_THAT(request, IsOk());
    EXPECT_EQ(request->sampling.format->text, "a");
    return request->sampling.format->reasoning;
  };
  const ChatPrompt chat{.messages = {{"user", "Hi"}}};
  const char* may_think = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}";
  EXPECT_EQ(reasoning("{{ messages[0].content }}", chat), Reasoning::kNone);
  EXPECT_EQ(reasoning(may_think, chat), Reasoning::kMayComeFirst);
  EXPECT_EQ(reasoning(may_think, std::string("Hi")), Reasoning::kNone);
  EXPECT_EQ(reasoning("{{ messages[0].content }}<think>\n", chat), Reasoning::kIsOpen);
}

struct BadRequest {
  const char* name;
  std::function<void(RawRequest&)> spoil;
  const char* message;
};

class RequestBuilderRefuses : public testing::TestWithParam<BadRequest> {};

TEST_P(RequestBuilderRefuses, AndNamesTheField) {
  RequestBuilder builder("smollm2", SmolLm2(), nullptr);
  RawRequest raw{.prompt = std::string("Hello")};
  GetParam().spoil(raw);
  EXPECT_THAT(builder.Build(raw), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, RequestBuilderRefuses,
    testing::Values(
        BadRequest{"NoPrompt", [](RawRequest& r) { r.prompt = std::monostate(); }, "prompt: set one of"},
        BadRequest{"EmptyText", [](RawRequest& r) { r.prompt = std::string(); },
                   "prompt: must have at least one token"},
        BadRequest{"BadUtf8", [](RawRequest& r) { r.prompt = std::string("\xFF"); }, "text: "},
        BadRequest{"TokenOutside", [](RawRequest& r) { r.prompt = std::vector<TokenId>{49152}; }, "token_ids: 49152"},
        BadRequest{"NegativeToken", [](RawRequest& r) { r.prompt = std::vector<TokenId>{-1}; }, "token_ids: -1"},
        BadRequest{"NoMessages", [](RawRequest& r) { r.prompt = ChatPrompt(); }, "chat.messages: must not be empty"},
        BadRequest{"NoTemplate",
                   [](RawRequest& r) {
                     r.prompt = ChatPrompt{.messages = {{"user", "x"}}};
                   },
                   "no chat template"},
        BadRequest{"NoFormat", [](RawRequest& r) { r.sampling.format = std::make_shared<OutputFormat>(); },
                   "json_schema, regex and grammar, of 1 to 65536 bytes, got 0"},
        BadRequest{"LongFormat",
                   [](RawRequest& r) {
                     r.sampling.format = std::make_shared<OutputFormat>(
                         OutputFormat{OutputFormat::Kind::kRegex, std::string(65537, 'a')});
                   },
                   "json_schema, regex and grammar, of 1 to 65536 bytes, got 65537"},
        BadRequest{"FormatWithZero",
                   [](RawRequest& r) {
                     r.sampling.format =
                         std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kRegex, std::string(1, 0)});
                   },
                   "sampling.response_format: must not have a zero byte"},
        BadRequest{"Temperature", [](RawRequest& r) { r.sampling.temperature = -1; },
                   "sampling.temperature: must be from 0"},
        BadRequest{"TemperatureNan", [](RawRequest& r) { r.sampling.temperature = NAN; }, "sampling.temperature"},
        BadRequest{"TopP", [](RawRequest& r) { r.sampling.top_p = 0; }, "sampling.top_p"},
        BadRequest{"TopK", [](RawRequest& r) { r.sampling.top_k = -5; }, "sampling.top_k"},
        BadRequest{"MinP", [](RawRequest& r) { r.sampling.min_p = 1; }, "sampling.min_p"},
        BadRequest{"RepetitionPenalty", [](RawRequest& r) { r.sampling.repetition_penalty = 0; },
                   "sampling.repetition_penalty"},
        BadRequest{"PresencePenalty", [](RawRequest& r) { r.sampling.presence_penalty = 3; },
                   "sampling.presence_penalty"},
        BadRequest{"FrequencyPenalty", [](RawRequest& r) { r.sampling.frequency_penalty = -3; },
                   "sampling.frequency_penalty"},
        BadRequest{"LogitBiasToken",
                   [](RawRequest& r) {
                     r.sampling.logit_bias = {{99999, 1.0f}};
                   },
                   "sampling.logit_bias: token id 99999"},
        BadRequest{"LogitBiasValue",
                   [](RawRequest& r) {
                     r.sampling.logit_bias = {{1, 101.0f}};
                   },
                   "sampling.logit_bias"},
        BadRequest{"MaxTokens", [](RawRequest& r) { r.sampling.max_tokens = -1; }, "sampling.max_tokens"},
        BadRequest{"MinOverMax",
                   [](RawRequest& r) {
                     r.sampling.max_tokens = 2;
                     r.sampling.min_tokens = 3;
                   },
                   "is over max_tokens"},
        BadRequest{"Logprobs", [](RawRequest& r) { r.sampling.logprobs = 21; }, "sampling.logprobs"},
        BadRequest{"StopToken", [](RawRequest& r) { r.sampling.stop_token_ids = {-2}; }, "sampling.stop_token_ids: -2"},
        BadRequest{"EmptyStop", [](RawRequest& r) { r.stops = {""}; }, "sampling.stop"},
        BadRequest{"TooManyStops", [](RawRequest& r) { r.stops.assign(17, "x"); }, "at most 16"},
        BadRequest{"Priority", [](RawRequest& r) { r.priority = 101; }, "priority: "},
        BadRequest{"Samples", [](RawRequest& r) { r.num_samples = 17; }, "n: must be from 0 to 16"},
        BadRequest{"LongName", [](RawRequest& r) { r.name.assign(300, 'x'); }, "request_id: "}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(RequestBuilderTest, RefusesAnotherModel) {
  raw_.model = "gpt-5";
  EXPECT_THAT(builder_.Build(raw_), StatusIs(absl::StatusCode::kNotFound, HasSubstr("serves \"smollm2\"")));
}

}  // namespace
}  // namespace tandem
