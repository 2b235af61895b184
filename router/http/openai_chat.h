#pragma once

#include <boost/json/fwd.hpp>

#include "absl/status/statusor.h"
#include "model/chat_template.h"

namespace tandem {

// Messages, tools and chat_template_kwargs of a body's fields. tool_choice "none" leaves the tools out; one that forces
// a call is refused, as nothing here can force the model. Errors as of ParseOpenAiRequest.
absl::StatusOr<ChatPrompt> ParseChatPrompt(const boost::json::object& body);

}  // namespace tandem
