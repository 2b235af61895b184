#include "router/http/openai_chat.h"

#include <boost/json/serialize.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/json_fields.h"

namespace tandem {
namespace {

namespace json = boost::json;

// A message's content: a string, or text parts, which are joined.
absl::StatusOr<std::string> ParseContent(const std::string& field, const json::value* content) {
  if (content == nullptr) return std::string();
  if (content->is_string()) return std::string(View(content->get_string()));
  if (!content->is_array()) return WrongType(field, "a string or an array of text parts", *content);
  std::string text;
  for (const json::value& part : content->get_array()) {
    if (!part.is_object()) return WrongType(field, "an array of text parts", part);
    Fields fields(part.get_object(), field + ".");
    std::string type, part_text;
    fields.Get("type", type);
    fields.Get("text", part_text);
    RETURN_IF_ERROR(fields.status());
    if (type != "text") {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": only parts of type \"text\" can be read, got \"", type, "\""));
    }
    absl::StrAppend(&text, text.empty() ? "" : "\n", part_text);
  }
  return text;
}

absl::StatusOr<ToolCall> ParseToolCall(const std::string& field, const json::value& value) {
  if (!value.is_object()) return WrongType(field, "an object", value);
  Fields fields(value.get_object(), field + ".");
  ToolCall call{.arguments = "{}"};
  fields.Get("id", call.id);
  const json::value* function = fields.Find("function");
  if (function == nullptr || !function->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".function: expected an object"));
  }
  Fields inner(function->get_object(), field + ".function.");
  inner.Get("name", call.name);
  inner.Get("arguments", call.arguments);
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(inner.status());
  if (call.name.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ".function.name: is missing"));
  return call;
}

absl::StatusOr<ChatMessage> ParseMessage(const std::string& field, const json::value& value) {
  if (!value.is_object()) return WrongType(field, "an object", value);
  Fields fields(value.get_object(), field + ".");
  ChatMessage message;
  fields.Get("role", message.role);
  if (message.role.empty()) fields.Refuse("role", "is missing");
  fields.Get("name", message.name);
  fields.Get("tool_call_id", message.tool_call_id);
  fields.Get("reasoning_content", message.reasoning);
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(message.content, ParseContent(field + ".content", fields.Find("content")));
  const json::value* calls = fields.Find("tool_calls");
  if (calls == nullptr) return message;
  if (!calls->is_array()) return WrongType(field + ".tool_calls", "an array", *calls);
  for (const json::value& item : calls->get_array()) {
    ASSIGN_OR_RETURN(ToolCall call,
                     ParseToolCall(absl::StrCat(field, ".tool_calls[", message.tool_calls.size(), "]"), item));
    message.tool_calls.push_back(std::move(call));
  }
  return message;
}

// OpenAI's array of functions, checked; "" for none.
absl::StatusOr<std::string> ParseTools(const Fields& body) {
  const json::value* tools = body.Find("tools");
  if (tools == nullptr) return std::string();
  if (!tools->is_array()) return WrongType("tools", "an array", *tools);
  int index = 0;
  for (const json::value& tool : tools->get_array()) {
    const std::string field = absl::StrCat("tools[", index++, "]");
    if (!tool.is_object()) return WrongType(field, "an object", tool);
    const json::value* function = tool.get_object().if_contains("function");
    if (function == nullptr || !function->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".function: expected an object"));
    }
    Fields fields(function->get_object(), field + ".function.");
    std::string name;
    fields.Get("name", name);
    RETURN_IF_ERROR(fields.status());
    if (name.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ".function.name: is missing"));
  }
  return tools->get_array().empty() ? std::string() : json::serialize(*tools);
}

// Whether tools may be called at all.
absl::StatusOr<bool> ParseToolChoice(const Fields& body) {
  const json::value* choice = body.Find("tool_choice");
  if (choice == nullptr) return true;
  if (choice->is_string()) {
    if (choice->get_string() == "none") return false;
    if (choice->get_string() == "auto") return true;
  }
  return absl::InvalidArgumentError(
      "tool_choice: only \"auto\" and \"none\" are supported: the model cannot be forced to call a function");
}

}  // namespace

absl::StatusOr<ChatPrompt> ParseChatPrompt(const json::object& body) {
  const Fields fields(body);
  const json::value* messages = fields.Find("messages");
  if (messages == nullptr) return absl::InvalidArgumentError("messages: is missing");
  if (!messages->is_array()) return WrongType("messages", "an array of messages", *messages);
  ChatPrompt prompt;
  for (const json::value& item : messages->get_array()) {
    ASSIGN_OR_RETURN(ChatMessage message, ParseMessage(absl::StrCat("messages[", prompt.messages.size(), "]"), item));
    prompt.messages.push_back(std::move(message));
  }
  ASSIGN_OR_RETURN(prompt.tools, ParseTools(fields));
  ASSIGN_OR_RETURN(const bool may_call, ParseToolChoice(fields));
  if (!may_call) prompt.tools.clear();
  if (const json::value* variables = fields.Find("chat_template_kwargs"); variables != nullptr) {
    if (!variables->is_object()) return WrongType("chat_template_kwargs", "an object", *variables);
    prompt.variables = json::serialize(*variables);
  }
  return prompt;
}

}  // namespace tandem
