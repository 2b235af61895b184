#include "model/chat_template.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::string> Render(absl::string_view source, const ChatPrompt& prompt) {
  absl::StatusOr<std::unique_ptr<ChatTemplate>> chat = ChatTemplate::Create(source, "<s>", "</s>");
  if (!chat.ok()) return chat.status();
  return (*chat)->Render(prompt, /*add_generation_prompt=*/true);
}

TEST(ChatTemplateTest, ToolsAndVariablesAreValues) {
  const ChatPrompt prompt{
      .messages = {{"user", "x"}},
      .tools = R"([{"type":"function","function":{"name":"f","parameters":{"b":1,"a":[null,2.5]}}}])",
      .variables = R"({"enable_thinking":false})"};
  EXPECT_THAT(
      Render("{{ tools[0].function.name }} {{ tools[0] | tojson }} {{ enable_thinking is false }}", prompt),
      IsOkAndHolds(
          R"(f {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [null, 2.5]}}} True)"));
  EXPECT_THAT(Render("{% if tools %}tools{% endif %}{{ enable_thinking is defined }}", {.messages = {{"user", "x"}}}),
              IsOkAndHolds("False"));
}

TEST(ChatTemplateTest, WhatMessagesDoNotHaveIsNotThere) {
  ChatMessage call{.role = "assistant", .content = ""};
  call.reasoning = "why";
  call.tool_calls = {{"c1", "f", R"({"city":"Oslo"})"}};
  ChatMessage result{.role = "tool", .content = "5"};
  result.tool_call_id = "c1";
  constexpr char kTemplate[] =
      "{% for m in messages %}{% if m.tool_calls %}{{ m.reasoning_content }}:{{ m.tool_calls[0].function.name }}("
      "{{ m.tool_calls[0].function.arguments.city }}){% endif %}{% if 'tool_call_id' in m %}{{ m.tool_call_id }}="
      "{{ m.content }}{% endif %}{% if 'name' in m %}!{% endif %};{% endfor %}";
  EXPECT_THAT(Render(kTemplate, {.messages = {{"user", "x"}, call, result}}), IsOkAndHolds(";why:f(Oslo);c1=5;"));
}

TEST(ChatTemplateTest, SaysWhatIsWrongWithJson) {
  ChatMessage call{.role = "assistant", .content = ""};
  call.tool_calls = {{"c1", "f", "[1]"}};
  EXPECT_THAT(Render("", {.messages = {call}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the arguments of f are no JSON object")));
  EXPECT_THAT(Render("", {.messages = {{"user", "x"}}, .variables = R"({"messages":1})"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("messages is set already")));
}

TEST(ChatTemplateTest, WhatClientsSendIsBounded) {
  std::string variables = "{", items = "[0";
  for (int i = 0; i < 65; ++i) absl::StrAppend(&variables, i == 0 ? "" : ",", "\"v", i, "\":1");
  for (int i = 0; i < 1'000'000; ++i) items += ",0";
  EXPECT_THAT(Render("", {.messages = {{"user", "x"}}, .variables = variables + "}"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 64 variables")));
  EXPECT_THAT(Render("", {.messages = {{"user", "x"}}, .tools = items + "]"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a list is too long")));
}

TEST(ChatTemplateTest, ACallWithoutArgumentsHasNone) {
  ChatMessage call{.role = "assistant", .content = ""};
  call.tool_calls = {{"c1", "f", ""}};
  EXPECT_THAT(Render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", {.messages = {call}}),
              IsOkAndHolds("{}"));
}

}  // namespace
}  // namespace tandem
