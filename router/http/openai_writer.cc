#include "router/http/openai_writer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/utf8.h"
#include "router/http/json_string.h"

namespace tandem {
namespace {

constexpr float kLeastLogprob = -9999;  // JSON has no infinity.

absl::string_view FinishName(const OpenAiChoice& choice) {
  switch (choice.finish) {
    case RequestFinish::kNone:
      return "null";
    case RequestFinish::kStop:
      return choice.ends_in_tool_calls ? "\"tool_calls\"" : "\"stop\"";
    case RequestFinish::kLength:
      return "\"length\"";
  }
  return "null";
}

void AppendNumber(float logprob, std::string& out) {
  absl::StrAppend(&out, std::isfinite(logprob) ? std::max(logprob, kLeastLogprob) : kLeastLogprob);
}

void AppendUsage(const OpenAiUsage& usage, std::string& out) {
  absl::StrAppend(&out, "\"usage\":{\"prompt_tokens\":", usage.prompt_tokens,
                  ",\"completion_tokens\":", usage.completion_tokens,
                  ",\"total_tokens\":", usage.prompt_tokens + usage.completion_tokens,
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", usage.cached_tokens, "}}");
}

// A token as it is, with its leading space, also where a text would begin with it; invalid bytes replaced.
std::string TokenText(const Tokenizer& tokenizer, TokenId token) {
  std::string text;
  absl::string_view rest = tokenizer.TokenBytes(token, /*with_special=*/true);
  while (!rest.empty()) {
    const int length = Utf8Length(rest);
    if (length > 0) {
      absl::StrAppend(&text, rest.substr(0, length));
    } else {
      AppendUtf8(0xFFFD, text);
    }
    rest.remove_prefix(static_cast<size_t>(std::max(1, length)));
  }
  return text;
}

// Characters that a token adds to the text.
size_t TextLength(const Tokenizer& tokenizer, TokenId token) {
  const absl::string_view bytes = tokenizer.TokenBytes(token);
  return static_cast<size_t>(std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

OpenAiWriter::OpenAiWriter(Options options, const Tokenizer& tokenizer)
    : options_(std::move(options)),
      tokenizer_(tokenizer),
      is_chat_(options_.endpoint == OpenAiEndpoint::kChatCompletions) {
  event_head_ = "data: ";
  AppendHead(is_chat_ ? "chat.completion.chunk" : "text_completion", event_head_);
}

void OpenAiWriter::AppendHead(absl::string_view object, std::string& out) const {
  out += "{\"id\":";
  AppendJsonString(options_.id, out);
  absl::StrAppend(&out, ",\"object\":\"", object, "\",\"created\":", options_.created, ",\"model\":");
  AppendJsonString(options_.model, out);
  out += ",\"choices\":[";
}

void OpenAiWriter::AppendChatFields(const OpenAiChoice& choice, bool is_delta, std::string& out) {
  if (!choice.reasoning.empty()) {
    out += ",\"reasoning_content\":";
    AppendJsonString(choice.reasoning, out);
  }
  if (choice.tool_calls.empty()) return;
  out += ",\"tool_calls\":[";
  int index = choice.first_tool_call;
  for (const ToolCall& call : choice.tool_calls) {
    if (&call != &choice.tool_calls.front()) out += ",";
    out += "{";
    if (is_delta) absl::StrAppend(&out, "\"index\":", index++, ",");
    out += "\"id\":";
    AppendJsonString(call.id, out);
    out += ",\"type\":\"function\",\"function\":{\"name\":";
    AppendJsonString(call.name, out);
    out += ",\"arguments\":";
    AppendJsonString(call.arguments, out);
    out += "}}";
  }
  out += "]";
}

void OpenAiWriter::AppendEvent(const OpenAiChoice& piece, bool is_first, const OpenAiUsage* usage, std::string& out) {
  absl::StrAppend(&out, event_head_, "{\"index\":", piece.index);
  if (is_chat_) {
    absl::StrAppend(&out, ",\"delta\":{", is_first ? "\"role\":\"assistant\"," : "", "\"content\":");
    AppendJsonString(piece.text, out);
    AppendChatFields(piece, /*is_delta=*/true, out);
    out += "}";
  } else {
    out += ",\"text\":";
    AppendJsonString(piece.text, out);
  }
  out += ",\"logprobs\":";
  if (options_.logprobs && !piece.tokens.empty()) {
    text_offsets_.resize(std::max<size_t>(text_offsets_.size(), piece.index + 1));
    AppendLogprobs(piece.tokens, text_offsets_[piece.index], out);
    for (const SampledToken& token : piece.tokens) {
      text_offsets_[piece.index] += TextLength(tokenizer_, token.token);
    }
  } else {
    out += "null";
  }
  absl::StrAppend(&out, ",\"finish_reason\":", FinishName(piece), "}]");
  if (usage != nullptr) {
    out += ",";
    AppendUsage(*usage, out);
  }
  out += "}\n\n";
}

void OpenAiWriter::AppendUsageEvent(const OpenAiUsage& usage, std::string& out) const {
  absl::StrAppend(&out, event_head_, "],");
  AppendUsage(usage, out);
  out += "}\n\n";
}

void OpenAiWriter::AppendErrorEvent(absl::string_view error_body, std::string& out) {
  absl::StrAppend(&out, "data: ", error_body, "\n\n");
}

void OpenAiWriter::AppendDone(std::string& out) { out += "data: [DONE]\n\n"; }

std::string OpenAiWriter::Whole(const std::vector<OpenAiChoice>& choices, const OpenAiUsage& usage) const {
  std::string out;
  AppendHead(is_chat_ ? "chat.completion" : "text_completion", out);
  for (const OpenAiChoice& choice : choices) {
    absl::StrAppend(&out, &choice == &choices.front() ? "" : ",", "{\"index\":", choice.index);
    out += is_chat_ ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":";
    AppendJsonString(choice.text, out);
    if (is_chat_) AppendChatFields(choice, /*is_delta=*/false, out);
    out += is_chat_ ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":";
    if (options_.logprobs) {
      AppendLogprobs(choice.tokens, 0, out);
    } else {
      out += "null";
    }
    absl::StrAppend(&out, ",\"finish_reason\":", FinishName(choice), "}");
  }
  out += "],";
  AppendUsage(usage, out);
  out += "}";
  return out;
}

void OpenAiWriter::AppendChatLogprob(TokenId token, float logprob, std::string& out) const {
  out += "{\"token\":";
  AppendJsonString(TokenText(tokenizer_, token), out);
  out += ",\"logprob\":";
  AppendNumber(logprob, out);
  out += ",\"bytes\":[";
  absl::string_view separator = "";
  for (const char byte : tokenizer_.TokenBytes(token, /*with_special=*/true)) {
    absl::StrAppend(&out, std::exchange(separator, ","), static_cast<int>(static_cast<unsigned char>(byte)));
  }
  out += "]";
}

void OpenAiWriter::AppendLogprobs(const std::vector<SampledToken>& tokens, size_t text_offset, std::string& out) const {
  if (is_chat_) {
    out += "{\"content\":[";
    for (const SampledToken& token : tokens) {
      if (&token != &tokens.front()) out += ",";
      AppendChatLogprob(token.token, token.logprob.value_or(kLeastLogprob), out);
      out += ",\"top_logprobs\":[";
      for (const TokenLogprob& top : token.top) {
        if (&top != &token.top.front()) out += ",";
        AppendChatLogprob(top.token, top.logprob, out);
        out += "}";
      }
      out += "]}";
    }
    out += "]}";
    return;
  }
  std::string texts, logprobs, tops, offsets;
  for (const SampledToken& token : tokens) {
    const char* const separator = &token == &tokens.front() ? "" : ",";
    texts += separator;
    AppendJsonString(TokenText(tokenizer_, token.token), texts);
    logprobs += separator;
    AppendNumber(token.logprob.value_or(kLeastLogprob), logprobs);
    absl::StrAppend(&tops, separator, "{");
    for (const TokenLogprob& top : token.top) {
      if (&top != &token.top.front()) tops += ",";
      AppendJsonString(TokenText(tokenizer_, top.token), tops);
      tops += ":";
      AppendNumber(top.logprob, tops);
    }
    tops += "}";
    absl::StrAppend(&offsets, separator, text_offset);
    text_offset += TextLength(tokenizer_, token.token);
  }
  absl::StrAppend(&out, "{\"tokens\":[", texts, "],\"token_logprobs\":[", logprobs, "],\"top_logprobs\":[", tops,
                  "],\"text_offset\":[", offsets, "]}");
}

}  // namespace tandem
