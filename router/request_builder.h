#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "common/topology.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "router/request.h"

namespace tandem {

// What a client asked for, before it was looked at; the same for every edge.
struct RawRequest {
  std::string name;
  std::string model;
  std::variant<std::monostate, std::string, std::vector<TokenId>, ChatPrompt> prompt;
  SamplingParams sampling;
  bool has_seed = false;
  std::vector<std::string> stops;
  int priority = 0;
  int num_samples = 0;
  std::string service_tier;
  std::string trace_parent;  // As W3C's header.
  std::string session;       // Requests of one session go to the same workers where that costs little.
};

struct TokenizedPrompt {
  std::vector<TokenId> tokens;
  bool opens_reasoning = false;  // As Request has it.
};

// Checks requests and turns their text into token ids: here and nowhere else.
//
// Thread-safety: thread-safe.
// Ownership: borrows tokenizer and template, which outlive it.
class RequestBuilder {
 public:
  // `chat_template` is null for models without one.
  RequestBuilder(std::string served_name, const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                 std::vector<ServiceTier> tiers = {})
      : served_name_(std::move(served_name)),
        tokenizer_(tokenizer),
        chat_template_(chat_template),
        tiers_(std::move(tiers)) {}

  // INVALID_ARGUMENT "field: what is wrong"; NOT_FOUND for another model's name. Arrival, deadline
  // and sink are the caller's to set.
  absl::StatusOr<Request> Build(RawRequest raw) const;
  // NOT_FOUND for another model's name; an empty one is that of the only model.
  absl::Status CheckModel(absl::string_view model) const;
  // The token ids of a prompt; errors as those of Build.
  absl::StatusOr<TokenizedPrompt> Tokenize(const RawRequest& raw) const;

 private:
  // Where reasoning may stand in the answer.
  OutputFormat::Reasoning ReasoningOf(const RawRequest& raw, const TokenizedPrompt& prompt) const;
  // Sets what the tier of a request says. INVALID_ARGUMENT: there is no such tier.
  absl::Status ApplyTier(absl::string_view name, Request& request) const;

  const std::string served_name_;
  const Tokenizer& tokenizer_;
  const ChatTemplate* const chat_template_;
  const std::vector<ServiceTier> tiers_;
};

}  // namespace tandem
