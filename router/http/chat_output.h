#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/chat_template.h"

namespace tandem {

// How a model writes its wish to have functions called.
enum class ToolFormat {
  kNone,    // It does not.
  kHermes,  // <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Qwen2.5, Qwen3, Hermes.
  kLlama3,  // The whole answer is {"name": ..., "parameters": {...}}, or several with ; between them.
  kDeepSeek,  // <｜tool▁call▁begin｜>function<｜tool▁sep｜>name, and the arguments in a fence (R1, V3) or bare (V3.1).
};

struct ChatFormat {
  ToolFormat tools = ToolFormat::kNone;
  bool reasons = false;  // <think>...</think> may stand before the answer.
};

// What a chat template says about the answers of its model.
ChatFormat ChatFormatOf(absl::string_view chat_template);

// A piece of an answer.
struct ChatDelta {
  std::string reasoning, content;
  std::vector<ToolCall> tool_calls;  // Whole ones.
  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

// Takes the text of one answer apart, as it comes: reasoning, content and tool calls. What looks like a tool call and
// is none (its arguments are no JSON object, or it is over 256 KiB long) stays content, so nothing is lost. White space
// beside what is taken out goes with it.
//
// Thread-safety: not thread-safe.
class ChatOutput {
 public:
  // `opens_reasoning`: the prompt ended with <think>.
  ChatOutput(const ChatFormat& format, bool opens_reasoning)
      : format_(format), state_(opens_reasoning ? State::kReasoning : State::kStart) {}

  ChatDelta Append(absl::string_view text);
  // The end: what was held back.
  ChatDelta Finish();
  int num_tool_calls() const { return num_tool_calls_; }  // So far.

 private:
  enum class State { kStart, kReasoning, kContent, kToolCall };
  // Consumes what can be told apart of pending_; true if it may go on.
  bool Advance(ChatDelta& delta);
  bool AdvanceStart();
  // Moves text up to `marker` to `out`; true, and the marker consumed, when it is there. Holds back what may be a
  // part of it, and white space that may stand before it.
  bool MoveUpTo(absl::string_view marker, std::string& out);
  void TakeToolCalls(absl::string_view text, ChatDelta& delta);
  absl::string_view ToolBegin() const;
  absl::string_view ToolEnd() const;

  ChatFormat format_;
  State state_;
  bool skips_space_ = true;  // At the beginning of a part.
  std::string pending_;
  size_t searched_ = 0;       // Of pending_, for the end of a call.
  std::string space_before_;  // What was left out before the last marker.
  int num_tool_calls_ = 0;
};

}  // namespace tandem
