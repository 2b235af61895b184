#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

namespace jinja {
class Template;
}

// A function that the model wanted called.
struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // A JSON object.
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string reasoning;             // Of an assistant's message: what came before the content.
  std::vector<ToolCall> tool_calls;  // Of an assistant's message.
  std::string tool_call_id;          // Of a tool's message: which call this is the result of.
  std::string name;
};

// A conversation, and what else a template may look at.
struct ChatPrompt {
  std::vector<ChatMessage> messages;
  std::string tools;      // JSON array of what may be called, as OpenAI's API has it; empty: nothing.
  std::string variables;  // JSON object of further variables, such as enable_thinking; empty: none.
};

// A model's chat template: turns a conversation into the prompt text that the model was trained on.
//
// Thread-safety: thread-safe; immutable after Create.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT names the line of a template that is not the Jinja subset of
  // docs/chat_templates.md. `bos` and `eos` are what the template knows as bos_token and eos_token.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(absl::string_view source, std::string bos,
                                                              std::string eos);
  ~ChatTemplate();

  // INVALID_ARGUMENT: the template refused the messages (raise_exception) or failed on them, and names
  // the line; or what should be JSON is none.
  absl::StatusOr<std::string> Render(const ChatPrompt& prompt, bool add_generation_prompt) const;
  // The model may put <think>...</think> before its answer.
  bool reasons() const { return reasons_; }

 private:
  ChatTemplate(std::unique_ptr<jinja::Template> parsed, std::string bos, std::string eos, bool reasons);
  const std::unique_ptr<jinja::Template> template_;
  const std::string bos_, eos_;
  const bool reasons_;
};

}  // namespace tandem
