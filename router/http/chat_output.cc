#include "router/http/chat_output.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/ids.h"

namespace tandem {
namespace {

namespace json = boost::json;

constexpr absl::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr absl::string_view kHermesBegin = "<tool_call>", kHermesEnd = "</tool_call>";
constexpr absl::string_view kDeepSeekBegin = "<｜tool▁calls▁begin｜>", kDeepSeekEnd = "<｜tool▁calls▁end｜>";
constexpr absl::string_view kCallBegin = "<｜tool▁call▁begin｜>", kCallEnd = "<｜tool▁call▁end｜>";
constexpr absl::string_view kSeparator = "<｜tool▁sep｜>", kFence = "```json\n", kFenceEnd = "\n```";

// White space that is held back, and bytes of a call; what is longer is text.
constexpr size_t kMostSpace = 256, kMostCallBytes = size_t{256} << 10;

// How much of the end of `text` may be the beginning of `marker`.
size_t PartialMatch(absl::string_view text, absl::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length) {
    if (absl::EndsWith(text, marker.substr(0, length))) return length;
  }
  return 0;
}

std::string NewCallId() { return absl::StrCat("call_", absl::Hex(DrawRandomId(), absl::kZeroPad16)); }

std::optional<json::value> ParseJson(absl::string_view text) {
  json::error_code error;
  json::value value = json::parse({text.data(), text.size()}, error);
  if (error) return std::nullopt;
  return value;
}

// {"name": ..., KEY: {...}}.
std::optional<ToolCall> CallOfObject(const json::value& value, absl::string_view key) {
  if (!value.is_object()) return std::nullopt;
  const json::value* name = value.get_object().if_contains("name");
  const json::value* arguments = value.get_object().if_contains({key.data(), key.size()});
  if (name == nullptr || !name->is_string() || name->get_string().empty() || arguments == nullptr) return std::nullopt;
  std::optional<json::value> unquoted;  // Some models quote them once more.
  if (arguments->is_string()) {
    unquoted = ParseJson({arguments->get_string().data(), arguments->get_string().size()});
    if (!unquoted.has_value()) return std::nullopt;
    arguments = &*unquoted;
  }
  if (!arguments->is_object()) return std::nullopt;
  return ToolCall{.id = NewCallId(), .name = std::string(name->get_string()), .arguments = json::serialize(*arguments)};
}

std::vector<ToolCall> HermesCalls(absl::string_view text) {
  const std::optional<json::value> value = ParseJson(absl::StripAsciiWhitespace(text));
  std::optional<ToolCall> call = value.has_value() ? CallOfObject(*value, "arguments") : std::nullopt;
  if (!call.has_value()) return {};
  return {*std::move(call)};
}

// All calls of a text, or none if it is anything else.
std::vector<ToolCall> LlamaCalls(absl::string_view text) {
  std::vector<ToolCall> calls;
  for (text = absl::StripAsciiWhitespace(text); !text.empty(); text = absl::StripLeadingAsciiWhitespace(text)) {
    if (!calls.empty() && !absl::ConsumePrefix(&text, ";")) return {};
    json::stream_parser parser;
    json::error_code error;
    const size_t size = parser.write_some(text.data(), text.size(), error);
    if (error || !parser.done()) return {};
    std::optional<ToolCall> call = CallOfObject(parser.release(), "parameters");
    if (!call.has_value()) return {};
    calls.push_back(*std::move(call));
    text.remove_prefix(size);
  }
  return calls;
}

// name<sep>arguments, or type<sep>name and the arguments in a fence.
std::optional<ToolCall> DeepSeekCall(absl::string_view text) {
  const size_t separator = text.find(kSeparator);
  if (separator == absl::string_view::npos) return std::nullopt;
  absl::string_view name = text.substr(0, separator), rest = text.substr(separator + kSeparator.size());
  if (const size_t fence = rest.find(kFence); fence != absl::string_view::npos) {
    name = rest.substr(0, fence);
    rest = rest.substr(fence + kFence.size());
    rest = rest.substr(0, rest.rfind(kFenceEnd));
  }
  const std::optional<json::value> arguments = ParseJson(absl::StripAsciiWhitespace(rest));
  name = absl::StripAsciiWhitespace(name);
  if (name.empty() || !arguments.has_value() || !arguments->is_object()) return std::nullopt;
  return ToolCall{.id = NewCallId(), .name = std::string(name), .arguments = json::serialize(*arguments)};
}

std::vector<ToolCall> DeepSeekCalls(absl::string_view text) {
  std::vector<ToolCall> calls;
  for (text = absl::StripAsciiWhitespace(text); !text.empty(); text = absl::StripLeadingAsciiWhitespace(text)) {
    const size_t end = text.find(kCallEnd);
    if (!absl::ConsumePrefix(&text, kCallBegin) || end == absl::string_view::npos) return {};
    std::optional<ToolCall> call = DeepSeekCall(text.substr(0, end - kCallBegin.size()));
    if (!call.has_value()) return {};
    calls.push_back(*std::move(call));
    text.remove_prefix(end - kCallBegin.size() + kCallEnd.size());
  }
  return calls;
}

}  // namespace

ChatFormat ChatFormatOf(absl::string_view chat_template) {
  ChatFormat format{.reasons = absl::StrContains(chat_template, kThinkEnd)};
  if (!absl::StrContains(chat_template, "tools") && !absl::StrContains(chat_template, "tool_calls")) return format;
  if (absl::StrContains(chat_template, kDeepSeekBegin)) {
    format.tools = ToolFormat::kDeepSeek;
  } else if (absl::StrContains(chat_template, kHermesBegin)) {
    format.tools = ToolFormat::kHermes;
  } else if (absl::StrContains(chat_template, "<|start_header_id|>")) {
    format.tools = ToolFormat::kLlama3;
  }
  return format;
}

absl::string_view ChatOutput::ToolBegin() const {
  return format_.tools == ToolFormat::kHermes ? kHermesBegin : kDeepSeekBegin;
}
absl::string_view ChatOutput::ToolEnd() const {
  return format_.tools == ToolFormat::kHermes ? kHermesEnd : kDeepSeekEnd;
}

bool ChatOutput::MoveUpTo(absl::string_view marker, std::string& out) {
  const absl::string_view pending = pending_;
  const size_t at = pending.find(marker);
  const bool is_there = at != absl::string_view::npos;
  absl::string_view text = pending.substr(0, at);
  if (!is_there) text.remove_suffix(PartialMatch(text, marker));
  const absl::string_view stripped = absl::StripTrailingAsciiWhitespace(text);
  if (text.size() - stripped.size() <= kMostSpace) text = stripped;
  if (is_there) space_before_ = pending_.substr(text.size(), at - text.size());
  size_t begin = 0;
  if (skips_space_) begin = text.size() - absl::StripLeadingAsciiWhitespace(text).size();
  if (begin < text.size()) skips_space_ = false;
  absl::StrAppend(&out, text.substr(begin));
  pending_.erase(0, is_there ? at + marker.size() : text.size());
  return is_there;
}

bool ChatOutput::AdvanceStart() {
  const absl::string_view text = absl::StripLeadingAsciiWhitespace(pending_);
  if (format_.reasons && absl::StartsWith(kThink, text) && text.size() < kThink.size()) return false;  // It may come.
  skips_space_ = false;
  if (format_.reasons && absl::StartsWith(text, kThink)) {
    pending_ = std::string(text.substr(kThink.size()));
    state_ = State::kReasoning;
    skips_space_ = true;
    return true;
  }
  if (format_.tools == ToolFormat::kLlama3) {
    if (text.empty()) return false;
    state_ = text[0] == '{' ? State::kToolCall : State::kContent;
    return true;
  }
  state_ = State::kContent;
  return true;
}

void ChatOutput::TakeToolCalls(absl::string_view text, ChatDelta& delta) {
  std::vector<ToolCall> calls = format_.tools == ToolFormat::kHermes   ? HermesCalls(text)
                                : format_.tools == ToolFormat::kLlama3 ? LlamaCalls(text)
                                                                       : DeepSeekCalls(text);
  num_tool_calls_ += static_cast<int>(calls.size());
  if (calls.empty()) {  // It only looked like one.
    if (format_.tools != ToolFormat::kLlama3) absl::StrAppend(&delta.content, space_before_, ToolBegin());
    absl::StrAppend(&delta.content, text);
    return;
  }
  std::move(calls.begin(), calls.end(), std::back_inserter(delta.tool_calls));
}

bool ChatOutput::Advance(ChatDelta& delta) {
  switch (state_) {
    case State::kStart:
      return AdvanceStart();
    case State::kReasoning:
      if (!MoveUpTo(kThinkEnd, delta.reasoning)) return false;
      state_ = State::kContent;
      if (format_.tools == ToolFormat::kLlama3) state_ = State::kStart;
      skips_space_ = true;
      return true;
    case State::kContent:
      if (format_.tools == ToolFormat::kNone || format_.tools == ToolFormat::kLlama3) {
        if (skips_space_) pending_.erase(0, pending_.size() - absl::StripLeadingAsciiWhitespace(pending_).size());
        if (!pending_.empty()) skips_space_ = false;
        delta.content += std::exchange(pending_, "");
        return false;
      }
      if (!MoveUpTo(ToolBegin(), delta.content)) return false;
      state_ = State::kToolCall;
      return true;
    case State::kToolCall: {
      if (pending_.size() > kMostCallBytes) {
        if (format_.tools != ToolFormat::kLlama3) absl::StrAppend(&delta.content, space_before_, ToolBegin());
        delta.content += std::exchange(pending_, "");
        format_.tools = ToolFormat::kNone;
        state_ = State::kContent;
        return false;
      }
      if (format_.tools == ToolFormat::kLlama3) return false;  // Up to the end.
      // Not again what was searched before, but for what may be the marker's beginning.
      const size_t from = searched_ < ToolEnd().size() ? 0 : searched_ - ToolEnd().size();
      const size_t end = absl::string_view(pending_).find(ToolEnd(), from);
      searched_ = pending_.size();
      if (end == absl::string_view::npos) return false;
      searched_ = 0;
      const int before = num_tool_calls_;
      TakeToolCalls(absl::string_view(pending_).substr(0, end), delta);
      if (num_tool_calls_ == before) absl::StrAppend(&delta.content, ToolEnd());
      pending_.erase(0, end + ToolEnd().size());
      skips_space_ = num_tool_calls_ > before;
      state_ = State::kContent;
      return true;
    }
  }
  return false;
}

ChatDelta ChatOutput::Append(absl::string_view text) {
  absl::StrAppend(&pending_, text);
  ChatDelta delta;
  while (Advance(delta)) {
  }
  return delta;
}

ChatDelta ChatOutput::Finish() {
  ChatDelta delta;
  switch (state_) {
    case State::kReasoning:
      delta.reasoning = std::exchange(pending_, "");
      break;
    case State::kToolCall:
      TakeToolCalls(std::exchange(pending_, ""), delta);  // A model may leave the end marker out.
      break;
    case State::kContent:
      if (skips_space_ && absl::StripAsciiWhitespace(pending_).empty()) break;
      [[fallthrough]];
    case State::kStart:
      delta.content = std::exchange(pending_, "");
      break;
  }
  pending_.clear();
  return delta;
}

}  // namespace tandem
