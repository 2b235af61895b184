#include "router/http/chat_output.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::StartsWith;

// Reasoning, content and calls of a text that comes in pieces of `step` bytes.
struct Parts {
  std::string reasoning, content, calls;
  friend bool operator==(const Parts&, const Parts&) = default;
  friend void PrintTo(const Parts& parts, std::ostream* out) {
    *out << "reasoning \"" << parts.reasoning << "\" content \"" << parts.content << "\" calls " << parts.calls;
  }
};

Parts Take(ChatOutput output, absl::string_view text, size_t step) {
  Parts parts;
  const auto add = [&](const ChatDelta& delta) {
    parts.reasoning += delta.reasoning;
    parts.content += delta.content;
    for (const ToolCall& call : delta.tool_calls) {
      EXPECT_THAT(call.id, StartsWith("call_"));
      absl::StrAppend(&parts.calls, call.name, call.arguments, ";");
    }
  };
  for (size_t at = 0; at < text.size(); at += step) add(output.Append(text.substr(at, step)));
  add(output.Finish());
  return parts;
}

struct Case {
  std::string name;
  ToolFormat tools;
  bool reasons, opens_reasoning;
  std::string text;
  Parts parts;
};

class ChatOutputTest : public testing::TestWithParam<Case> {};

TEST_P(ChatOutputTest, IsTheSameInPiecesOfAnySize) {
  const Case& c = GetParam();
  for (const size_t step : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, size_t{1000}}) {
    EXPECT_EQ(Take(ChatOutput({c.tools, c.reasons}, c.opens_reasoning), c.text, step), c.parts) << "steps of " << step;
  }
}

constexpr ToolFormat kNone = ToolFormat::kNone, kHermes = ToolFormat::kHermes, kLlama = ToolFormat::kLlama3,
                     kDeepSeek = ToolFormat::kDeepSeek;

INSTANTIATE_TEST_SUITE_P(
    Answers, ChatOutputTest,
    testing::Values(
        Case{"Plain", kNone, true, false, " Hi <b>\n", {"", " Hi <b>\n", ""}},
        Case{"WhiteSpace", kNone, true, false, "\n", {"", "\n", ""}},
        Case{"Reasoning", kNone, true, false, "<think>\nWhy?\n</think>\n\nSo. ", {"Why?", "So. ", ""}},
        Case{"OpenedReasoning", kNone, true, true, "\nWhy\n\nnot?\n</think>\n\nSo.", {"Why\n\nnot?", "So.", ""}},
        Case{"EmptyReasoning", kNone, true, false, "<think>\n\n</think>\n\nSo.", {"", "So.", ""}},
        Case{"EndlessReasoning", kNone, true, true, "Why </thin", {"Why </thin", "", ""}},
        Case{"NoReasoningModel", kNone, false, false, "<think>x</think>", {"", "<think>x</think>", ""}},
        Case{"AlmostReasoning", kNone, true, false, "<thin", {"", "<thin", ""}},
        Case{"Hermes",
             kHermes,
             true,
             false,
             "<think>t</think>\nLook:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"</x>\"]}}\n"
             "</tool_call>\n<tool_call>\n{\"name\":\"g\",\"arguments\":{}}\n</tool_call>",
             {"t", "Look:", "f{\"a\":[1,\"</x>\"]};g{};"}},
        Case{"HermesUnended", kHermes, false, false, "<tool_call>{\"name\":\"f\",\"arguments\":{}}", {"", "", "f{};"}},
        Case{"HermesQuoted",
             kHermes,
             false,
             false,
             R"(<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>)",
             {"", "", "f{\"a\":1};"}},
        Case{"HermesBroken",
             kHermes,
             false,
             false,
             "a <tool_call>{\"name\":</tool_call> b",
             {"", "a <tool_call>{\"name\":</tool_call> b", ""}},
        Case{"HermesText", kHermes, false, false, "a <tool_cal b", {"", "a <tool_cal b", ""}},
        Case{"Llama",
             kLlama,
             false,
             false,
             "{\"name\": \"f\", \"parameters\": {\"q\": \"a;b\"}}",
             {"", "", "f{\"q\":\"a;b\"};"}},
        Case{"LlamaSeveral",
             kLlama,
             false,
             false,
             " {\"name\":\"f\",\"parameters\":{}}; {\"name\":\"g\",\"parameters\":{\"x\":1}}",
             {"", "", "f{};g{\"x\":1};"}},
        Case{"LlamaOtherJson", kLlama, false, false, "{\"answer\": 5}", {"", "{\"answer\": 5}", ""}},
        Case{"LlamaObjectWithAName",
             kLlama,
             false,
             false,
             "{\"name\": \"Alice\", \"age\": 30}",
             {"", "{\"name\": \"Alice\", \"age\": 30}", ""}},
        Case{"HermesArgumentsAreNoObject",
             kHermes,
             false,
             false,
             R"(<tool_call>{"name":"f","arguments":[1]}</tool_call>)",
             {"", R"(<tool_call>{"name":"f","arguments":[1]}</tool_call>)", ""}},
        Case{"DeepSeekArgumentsAreNoObject",
             kDeepSeek,
             false,
             false,
             "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>5<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
             {"", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>5<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
              ""}},
        Case{"LlamaText", kLlama, false, false, "Say {\"name\":\"f\"}", {"", "Say {\"name\":\"f\"}", ""}},
        Case{"DeepSeekR1",
             kDeepSeek,
             true,
             true,
             "t\n</think>\n\nOk.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": "
             "1}\n```"
             "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>"
             "<｜tool▁calls▁end｜>",
             {"t", "Ok.", "f{\"a\":1};g{};"}},
        Case{"DeepSeekBare",
             kDeepSeek,
             true,
             false,
             "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜><"
             "｜tool▁calls▁end｜>",
             {"", "", "f{\"a\":1};"}},
        Case{"DeepSeekBroken",
             kDeepSeek,
             true,
             false,
             "<｜tool▁calls▁begin｜>x<｜tool▁calls▁end｜>",
             {"", "<｜tool▁calls▁begin｜>x<｜tool▁calls▁end｜>", ""}}),
    [](const auto& info) { return info.param.name; });

TEST(ChatOutputStreamTest, TextIsNotHeldBackLongerThanItMustBe) {
  ChatOutput output({ToolFormat::kHermes, true}, false);
  EXPECT_EQ(output.Append("Hello").content, "Hello");
  EXPECT_EQ(output.Append(" world <").content, " world");
  EXPECT_EQ(output.Append("b>").content, " <b>");
}

TEST(ChatOutputStreamTest, ACallWithoutEndBecomesTextAndIsNotSearchedAgainAndAgain) {
  ChatOutput output({ToolFormat::kHermes, false}, false);
  std::string content = output.Append("a \n<tool_call>").content;
  for (int i = 0; i < 300'000; ++i) content += output.Append("x").content;
  EXPECT_EQ(content, "a \n<tool_call>" + std::string(300'000, 'x'));
  EXPECT_TRUE(output.Finish().empty());
}

TEST(ChatOutputStreamTest, EndlessWhiteSpaceIsNotHeldBack) {
  ChatOutput output({ToolFormat::kHermes, false}, false);
  std::string content = output.Append("a").content;
  for (int i = 0; i < 1'000; ++i) content += output.Append("\n").content;
  EXPECT_GT(content.size(), 700);
  content += output.Finish().content;
  EXPECT_EQ(content, "a" + std::string(1'000, '\n'));
}

TEST(ChatFormatTest, IsReadFromTheTemplate) {
  const auto of = [](absl::string_view text) { return ChatFormatOf(text).tools; };
  EXPECT_EQ(of("{% for m in messages %}{{ m.content }}{% endfor %}"), ToolFormat::kNone);
  EXPECT_EQ(of("{% if tools %}<tool_call>{% endif %}"), ToolFormat::kHermes);
  EXPECT_EQ(of("{% if tools %}<|start_header_id|>{% endif %}"), ToolFormat::kLlama3);
  EXPECT_EQ(of("<|start_header_id|>"), ToolFormat::kNone);  // Llama 3.0 knows no tools.
  EXPECT_EQ(of("{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% endif %}"), ToolFormat::kDeepSeek);
  EXPECT_TRUE(ChatFormatOf("{{ m.content.split('</think>') }}").reasons);
  EXPECT_FALSE(ChatFormatOf("{{ m.content }}").reasons);
}

}  // namespace
}  // namespace tandem
