#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "router/http/openai_request.h"
#include "router/request.h"

namespace tandem {

// What was generated for one choice, whole or a piece of it.
struct OpenAiChoice {
  int index = 0;
  std::string text;
  // Of chats.
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
  int first_tool_call = 0;          // How many of the choice came in pieces before.
  bool ends_in_tool_calls = false;  // With the last piece: there were any.
  std::vector<SampledToken> tokens;
  RequestFinish finish = RequestFinish::kNone;
};

// Prompt and output so far, of all choices.
struct OpenAiUsage {
  int prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

// Writes the answers of one call as OpenAI's JSON. The parts that are the same in every event are made once.
//
// Thread-safety: not thread-safe.
// Ownership: borrows the tokenizer.
class OpenAiWriter {
 public:
  struct Options {
    OpenAiEndpoint endpoint = OpenAiEndpoint::kChatCompletions;
    std::string id;
    std::string model;
    int64_t created = 0;  // Seconds since 1970.
    bool logprobs = false;
  };
  OpenAiWriter(Options options, const Tokenizer& tokenizer);

  // Appends an event with a piece of a choice; `is_first` of it. `usage` is null where it is not to be told.
  void AppendEvent(const OpenAiChoice& piece, bool is_first, const OpenAiUsage* usage, std::string& out);
  void AppendUsageEvent(const OpenAiUsage& usage, std::string& out) const;
  static void AppendErrorEvent(absl::string_view error_body, std::string& out);
  static void AppendDone(std::string& out);

  // The body of an answer that is not streamed.
  std::string Whole(const std::vector<OpenAiChoice>& choices, const OpenAiUsage& usage) const;

 private:
  void AppendHead(absl::string_view object, std::string& out) const;
  // The fields of a chat's delta or message, each after a comma.
  static void AppendChatFields(const OpenAiChoice& choice, bool is_delta, std::string& out);
  // "logprobs":... of the tokens; `text_offset` is that of the first, in characters of the choice's text.
  void AppendLogprobs(const std::vector<SampledToken>& tokens, size_t text_offset, std::string& out) const;
  void AppendChatLogprob(TokenId token, float logprob, std::string& out) const;

  const Options options_;
  const Tokenizer& tokenizer_;
  const bool is_chat_;
  std::string event_head_;            // Of every event, up to its choices.
  std::vector<size_t> text_offsets_;  // Of the next token, by choice; with logprobs of completions.
};

}  // namespace tandem
