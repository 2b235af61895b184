#include "model/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "common/status_macros.h"
#include "model/jinja/template.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(absl::string_view source, std::string bos,
                                                                   std::string eos) {
  absl::StatusOr<std::unique_ptr<jinja::Template>> parsed = jinja::Template::Parse(source);
  if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat("chat template: ", parsed.status().message()));
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(*std::move(parsed), std::move(bos), std::move(eos)));
}

ChatTemplate::ChatTemplate(std::unique_ptr<jinja::Template> parsed, std::string bos, std::string eos)
    : template_(std::move(parsed)), bos_(std::move(bos)), eos_(std::move(eos)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                                 bool add_generation_prompt) const {
  std::vector<jinja::Value> list;
  for (const ChatMessage& message : messages) {
    list.push_back(jinja::MakeDict({{"role", message.role}, {"content", message.content}}));
  }
  return template_->Render({{"messages", jinja::MakeList(std::move(list))},
                            {"add_generation_prompt", add_generation_prompt},
                            {"bos_token", bos_},
                            {"eos_token", eos_}});
}

}  // namespace tandem
