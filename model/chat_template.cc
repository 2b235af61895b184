#include "model/chat_template.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/json_values.h"
#include "model/jinja/template.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(absl::string_view source, std::string bos,
                                                                   std::string eos) {
  absl::StatusOr<std::unique_ptr<jinja::Template>> parsed = jinja::Template::Parse(source);
  if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat("chat template: ", parsed.status().message()));
  return std::unique_ptr<ChatTemplate>(
      new ChatTemplate(*std::move(parsed), std::move(bos), std::move(eos), absl::StrContains(source, "</think>")));
}

ChatTemplate::ChatTemplate(std::unique_ptr<jinja::Template> parsed, std::string bos, std::string eos, bool reasons)
    : template_(std::move(parsed)), bos_(std::move(bos)), eos_(std::move(eos)), reasons_(reasons) {}
ChatTemplate::~ChatTemplate() = default;

namespace {

constexpr size_t kMaxVariables = 64;
constexpr absl::string_view kOwnVariables[] = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"};

absl::StatusOr<jinja::Value> CallValue(const ToolCall& call) {
  absl::StatusOr<jinja::Value> arguments = jinja::FromJson(call.arguments.empty() ? "{}" : call.arguments);
  if (!arguments.ok() || arguments->AsDict() == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("tool_calls: the arguments of ", call.name, " are no JSON object"));
  }
  return jinja::MakeDict({{"id", call.id},
                          {"type", "function"},
                          {"function", jinja::MakeDict({{"name", call.name}, {"arguments", *std::move(arguments)}})}});
}

// Templates ask whether keys are there.
absl::StatusOr<jinja::Value> MessageValue(const ChatMessage& message) {
  std::vector<std::pair<jinja::Value, jinja::Value>> items = {{"role", message.role}, {"content", message.content}};
  if (!message.reasoning.empty()) items.emplace_back("reasoning_content", message.reasoning);
  if (!message.tool_call_id.empty()) items.emplace_back("tool_call_id", message.tool_call_id);
  if (!message.name.empty()) items.emplace_back("name", message.name);
  std::vector<jinja::Value> calls;
  for (const ToolCall& call : message.tool_calls) {
    ASSIGN_OR_RETURN(jinja::Value value, CallValue(call));
    calls.push_back(std::move(value));
  }
  if (!calls.empty()) items.emplace_back("tool_calls", jinja::MakeList(std::move(calls)));
  return jinja::MakeDict(std::move(items));
}

}  // namespace

absl::StatusOr<std::string> ChatTemplate::Render(const ChatPrompt& prompt, bool add_generation_prompt) const {
  std::vector<jinja::Value> list;
  for (const ChatMessage& message : prompt.messages) {
    ASSIGN_OR_RETURN(jinja::Value value, MessageValue(message));
    list.push_back(std::move(value));
  }
  std::vector<std::pair<std::string, jinja::Value>> variables = {{"messages", jinja::MakeList(std::move(list))},
                                                                 {"add_generation_prompt", add_generation_prompt},
                                                                 {"bos_token", bos_},
                                                                 {"eos_token", eos_}};
  if (!prompt.tools.empty()) {
    ASSIGN_OR_RETURN(jinja::Value tools, jinja::FromJson(prompt.tools));
    variables.emplace_back("tools", std::move(tools));
  }
  if (!prompt.variables.empty()) {
    ASSIGN_OR_RETURN(const jinja::Value further, jinja::FromJson(prompt.variables));
    if (further.AsDict() == nullptr) return absl::InvalidArgumentError("the variables are no JSON object");
    if (further.AsDict()->items.size() > kMaxVariables) {
      return absl::InvalidArgumentError(absl::StrCat("at most ", kMaxVariables, " variables"));
    }
    for (const auto& [key, value] : further.AsDict()->items) {
      const std::string& name = *key.AsString();
      if (std::find(std::begin(kOwnVariables), std::end(kOwnVariables), name) != std::end(kOwnVariables)) {
        return absl::InvalidArgumentError(absl::StrCat("the variable ", name, " is set already"));
      }
      variables.emplace_back(name, value);
    }
  }
  return template_->Render(std::move(variables));
}

}  // namespace tandem
