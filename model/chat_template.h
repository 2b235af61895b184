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

struct ChatMessage {
  std::string role;
  std::string content;
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

  // INVALID_ARGUMENT: the template refused the messages (raise_exception) or failed on them; names
  // the line.
  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;

 private:
  ChatTemplate(std::unique_ptr<jinja::Template> parsed, std::string bos, std::string eos);
  const std::unique_ptr<jinja::Template> template_;
  const std::string bos_, eos_;
};

}  // namespace tandem
