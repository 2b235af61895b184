#include "router/http/openai_call.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "router/http/openai_error.h"
#include "router/http/openai_writer.h"

namespace tandem {
namespace {

// What a call's headers say.
struct CallHeaders {
  std::string name, session, trace_parent;
  absl::Duration timeout = absl::InfiniteDuration();
};

// A body that was understood.
struct PreparedCall {
  OpenAiRequest call;
  std::vector<Request> requests;  // One for each prompt.
};

// Thread-safe.
absl::StatusOr<PreparedCall> Prepare(const OpenAiShared& shared, OpenAiEndpoint endpoint, const CallHeaders& headers,
                                     absl::string_view body) {
  PreparedCall prepared;
  ASSIGN_OR_RETURN(prepared.call, ParseOpenAiRequest(endpoint, body));
  if (prepared.call.calls_tools && shared.chat_format.tools == ToolFormat::kNone) {
    return absl::InvalidArgumentError("tools: the chat template of this model has no tool calls that are known");
  }
  std::vector<RawRequest>& prompts = prepared.call.prompts;
  const int64_t samples = static_cast<int64_t>(prompts.size()) * std::max(1, prompts[0].num_samples);
  if (samples > shared.max_samples) {
    const bool is_one = prompts.size() == 1;
    return absl::InvalidArgumentError(absl::StrCat(is_one ? "n: " : "prompt: ", prompts.size(),
                                                   is_one ? " prompt makes " : " prompts make ", samples,
                                                   " samples, and the router takes ", shared.max_samples, " at most"));
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    prompts[i].session = headers.session;
    prompts[i].trace_parent = headers.trace_parent;
    prompts[i].name = prompts.size() == 1 ? headers.name : absl::StrCat(headers.name, "-", i);
    ASSIGN_OR_RETURN(Request request, shared.builder.Build(std::move(prompts[i])));
    prepared.requests.push_back(std::move(request));
  }
  return prepared;
}

absl::StatusOr<std::string> NameOf(const HttpHeaders& headers) {
  const absl::string_view id = headers.Get("X-Request-Id");
  if (id.empty()) return absl::StrCat("req-", absl::Hex(DrawRandomId(), absl::kZeroPad16));
  if (!std::all_of(id.begin(), id.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError("request_id: must be printable ASCII without spaces");
  }
  return std::string(id);
}

// In seconds, for the whole answer; without it there is no limit.
absl::StatusOr<absl::Duration> TimeoutOf(const HttpHeaders& headers) {
  const absl::string_view text = headers.Get("X-Request-Timeout");
  double seconds = 0;
  if (text.empty()) return absl::InfiniteDuration();
  if (!absl::SimpleAtod(text, &seconds) || !(seconds > 0)) {
    return absl::InvalidArgumentError(absl::StrCat("request_timeout: expected seconds over 0, got \"", text, "\""));
  }
  return absl::Seconds(seconds);
}

absl::StatusOr<CallHeaders> ReadHeaders(const HttpHeaders& headers) {
  const absl::string_view session = headers.Get("X-Session-Id");
  CallHeaders out{.session = std::string(session.empty() ? headers.Get("X-Session-Affinity") : session),  // aiperf's.
                  .trace_parent = std::string(headers.Get("traceparent"))};
  ASSIGN_OR_RETURN(out.name, NameOf(headers));
  ASSIGN_OR_RETURN(out.timeout, TimeoutOf(headers));
  return out;
}

// Thread-safety: the HTTP server's thread, but for Prepare.
// Ownership: kept by the reply's callbacks and by the sinks of its requests, until both have ended.
class OpenAiCall final : public RequestListener, public std::enable_shared_from_this<OpenAiCall> {
 public:
  OpenAiCall(OpenAiShared& shared, OpenAiEndpoint endpoint, Tenant tenant, CallHeaders headers,
             std::shared_ptr<HttpReply> reply)
      : shared_(shared),
        endpoint_(endpoint),
        tenant_(tenant),
        headers_(std::move(headers)),
        reply_(std::move(reply)),
        arrival_(shared.clock.Now()) {}

  void Begin(std::string body) {
    reply_->OnGone([self = shared_from_this()] { self->OnClientLeft(); });
    if (body.size() <= LongTexts::kLongBytes) {
      Submit(Prepare(shared_, endpoint_, headers_, body));
      return;
    }
    const size_t bytes = body.size();
    // Moved on, not shared: ThreadSanitizer does not see how Debian's abseil counts a shared status.
    auto work = [self = shared_from_this(), body = std::move(body)](absl::Status status) {
      absl::StatusOr<PreparedCall> prepared = status.ok()
                                                  ? Prepare(self->shared_, self->endpoint_, self->headers_, body)
                                                  : absl::StatusOr<PreparedCall>(std::move(status));
      self->shared_.server->Post(
          [self, prepared = std::move(prepared)]() mutable { self->Submit(std::move(prepared)); });
    };
    absl::Status status = shared_.long_texts.Run(bytes, std::move(work));
    if (!status.ok()) Refuse(status);
  }

  void OnUpdate(int request, SampleUpdate update) override {
    if (over_) return;
    const int index = request * samples_ + update.index;
    completion_tokens_ += static_cast<int>(update.tokens.size());
    OpenAiChoice piece{.index = index, .text = std::move(update.text), .tokens = std::move(update.tokens)};
    piece.finish = update.finish;
    if (!outputs_.empty()) TakeApart(outputs_[index], piece);
    if (call_.stream) {
      WriteEvent(piece);
      return;
    }
    OpenAiChoice& choice = choices_[index];
    choice.text += piece.text;
    choice.reasoning += piece.reasoning;
    std::move(piece.tool_calls.begin(), piece.tool_calls.end(), std::back_inserter(choice.tool_calls));
    if (logprobs_) {
      std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(choice.tokens));
    }
    choice.finish = piece.finish;
    choice.ends_in_tool_calls = piece.ends_in_tool_calls;
  }

  void OnFinish(int request, const absl::Status& status, const RequestUsage& usage) override {
    requests_[request] = nullptr;
    if (over_) return;
    if (!status.ok()) {
      Fail(status);
      return;
    }
    cached_tokens_ += usage.cached_tokens;
    if (--open_requests_ == 0) FinishWell();
  }

 private:
  void Submit(absl::StatusOr<PreparedCall> prepared) {
    if (over_) return;  // The client left while its text was tokenised.
    if (!prepared.ok()) {
      Refuse(prepared.status());
      return;
    }
    call_ = std::move(prepared->call);
    samples_ = prepared->requests[0].num_samples;
    logprobs_ = prepared->requests[0].sampling.logprobs.has_value();
    open_requests_ = static_cast<int>(prepared->requests.size());
    choices_.resize(static_cast<size_t>(samples_) * open_requests_);
    for (size_t i = 0; i < choices_.size(); ++i) choices_[i].index = static_cast<int>(i);
    started_.resize(choices_.size());
    ChatFormat format = shared_.chat_format;
    if (!call_.calls_tools) format.tools = ToolFormat::kNone;
    const bool takes_apart = format.reasons || format.tools != ToolFormat::kNone;
    if (endpoint_ == OpenAiEndpoint::kChatCompletions && shared_.splits_chat_output && takes_apart) {
      outputs_.assign(choices_.size(), ChatOutput(format, prepared->requests[0].opens_reasoning));
    }
    const absl::string_view prefix = endpoint_ == OpenAiEndpoint::kChatCompletions ? "chatcmpl-" : "cmpl-";
    writer_.emplace(OpenAiWriter::Options{endpoint_, absl::StrCat(prefix, headers_.name), shared_.served_name,
                                          absl::ToUnixSeconds(absl::Now()), logprobs_},
                    shared_.tokenizer);
    if (call_.stream) reply_->ExpectStream();
    for (Request& request : prepared->requests) {
      prompt_tokens_ += static_cast<int>(request.prompt.size());
      auto owned = std::make_shared<Request>(std::move(request));
      owned->tenant = tenant_;
      // The call's own prompts are no reason to refuse it.
      if (!requests_.empty()) owned->ttft_limit = owned->tpot_limit = absl::InfiniteDuration();
      owned->arrival = arrival_;
      owned->deadline = arrival_ + headers_.timeout;
      owned->sink = shared_.relay.NewSink(shared_from_this(), static_cast<int>(requests_.size()));
      requests_.push_back(std::move(owned));
    }
    for (const auto& request : requests_) shared_.core.Submit(request);
  }

  // Reasoning and tool calls of a chat go from the piece's text to fields of their own.
  static void TakeApart(ChatOutput& output, OpenAiChoice& piece) {
    piece.first_tool_call = output.num_tool_calls();
    ChatDelta delta = output.Append(piece.text);
    if (piece.finish != RequestFinish::kNone) {
      ChatDelta last = output.Finish();
      delta.reasoning += last.reasoning;
      delta.content += last.content;
      std::move(last.tool_calls.begin(), last.tool_calls.end(), std::back_inserter(delta.tool_calls));
    }
    piece.text = std::move(delta.content);
    piece.reasoning = std::move(delta.reasoning);
    piece.tool_calls = std::move(delta.tool_calls);
    piece.ends_in_tool_calls = output.num_tool_calls() > 0;
  }

  void WriteEvent(const OpenAiChoice& piece) {
    const bool is_first = !started_[piece.index];
    started_[piece.index] = true;
    const bool has_news = !piece.text.empty() || !piece.reasoning.empty() || !piece.tool_calls.empty() ||
                          piece.finish != RequestFinish::kNone || is_first || (logprobs_ && !piece.tokens.empty());
    if (!has_news) return;  // Half a character, or what may become a stop string or a tool call.
    const OpenAiUsage usage = UsageSoFar();
    events_.clear();
    writer_->AppendEvent(piece, is_first, call_.continuous_usage ? &usage : nullptr, events_);
    reply_->Write(events_);
  }

  void FinishWell() {
    over_ = true;
    if (!call_.stream) {
      reply_->Send({.body = writer_->Whole(choices_, UsageSoFar())});
      return;
    }
    events_.clear();
    if (call_.include_usage) writer_->AppendUsageEvent(UsageSoFar(), events_);
    OpenAiWriter::AppendDone(events_);
    reply_->Write(events_);
    reply_->EndStream();
  }

  void Fail(const absl::Status& status) {
    over_ = true;
    CancelRequests();
    if (!reply_->stream_started()) {
      reply_->Send(OpenAiError(status));
      return;
    }
    events_.clear();
    OpenAiWriter::AppendErrorEvent(OpenAiErrorBody(status), events_);
    reply_->Write(events_);
    reply_->EndStream();
  }

  // It never reached the core.
  void Refuse(const absl::Status& status) {
    over_ = true;
    shared_.core.CountRefused(headers_.name, tenant_, status);
    reply_->Send(OpenAiError(status));
  }

  void OnClientLeft() {
    over_ = true;
    CancelRequests();
  }

  void CancelRequests() {
    for (auto& request : requests_) {
      if (request != nullptr) shared_.core.CancelCall(std::move(request));
    }
  }

  OpenAiUsage UsageSoFar() const { return {prompt_tokens_, completion_tokens_, cached_tokens_}; }

  OpenAiShared& shared_;
  const OpenAiEndpoint endpoint_;
  const Tenant tenant_;
  const CallHeaders headers_;
  const std::shared_ptr<HttpReply> reply_;  // Co-owner: the connection.
  const absl::Time arrival_;
  OpenAiRequest call_;
  std::optional<OpenAiWriter> writer_;
  // Those that have not ended. Co-owner: the core.
  std::vector<std::shared_ptr<const Request>> requests_;
  int samples_ = 1, open_requests_ = 0;
  bool logprobs_ = false;
  std::vector<OpenAiChoice> choices_;  // What is not streamed.
  std::vector<bool> started_;          // Choices with an event.
  std::vector<ChatOutput> outputs_;    // By choice, of chats whose answers have parts.
  std::string events_;
  int prompt_tokens_ = 0, completion_tokens_ = 0, cached_tokens_ = 0;
  bool over_ = false;
};

}  // namespace

void StartOpenAiCall(OpenAiShared& shared, OpenAiEndpoint endpoint, Tenant tenant, HttpRequest request,
                     std::shared_ptr<HttpReply> reply) {
  if (!shared.gate.Enter()) {
    const absl::Status status = absl::UnavailableError("the router is shutting down");
    shared.core.CountRefused("", tenant, status);
    reply->Send(OpenAiError(status));
    return;
  }
  reply->OnOver([&shared] { shared.gate.Leave(); });
  absl::StatusOr<CallHeaders> headers = ReadHeaders(request.headers);
  const absl::Status entry = headers.ok() ? shared.core.CheckRoom() : headers.status();
  if (!entry.ok()) {
    shared.core.CountRefused(headers.ok() ? headers->name : "", tenant, entry);
    reply->Send(OpenAiError(entry));
    return;
  }
  std::make_shared<OpenAiCall>(shared, endpoint, tenant, *std::move(headers), std::move(reply))
      ->Begin(std::move(request.body));
}

}  // namespace tandem
