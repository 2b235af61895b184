#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/queue_place.h"
#include "engine/constraint/format_thread.h"
#include "engine/sampling.h"

namespace tandem {

// What is asked of the engine: one sample of one request, or its first token only.
struct SequenceRequest {
  RequestId id;
  std::vector<TokenId> tokens;  // Prompt, then output of earlier legs.
  int prompt_tokens = 0;        // How many of tokens are prompt; the rest counts as output.
  SamplingParams sampling;
  QueuePlace place;
  absl::Time deadline = absl::InfiniteFuture();
  // Stop after the first new token and keep the pages until Cancel: a prefill worker's sequences.
  bool hold_after_first_token = false;
  // Of a format whose compilation has begun with less output or all of it; null: it begins with the sequence.
  std::shared_ptr<FormatJob> format_job;
};

// One sequence inside the engine.
//
// Thread-safety: not thread-safe; the engine thread owns it.
struct Sequence {
  SequenceRequest request;
  // Of a request with a format: it is being compiled, and the scheduler lets others pass; or it is there, and has
  // accepted the known output.
  bool awaits_constraint = false;
  std::unique_ptr<TokenConstraint> constraint;
  absl::Time arrival;
  absl::Time first_scheduled = absl::InfinitePast();
  std::vector<PageIndex> pages;  // Cover the computed tokens and those of the step that runs.
  int computed_tokens = 0;       // Tokens whose KV is in the pages.
  int cached_tokens = 0;         // Of those, found in the prefix cache when it was first admitted.
  bool prefix_reported = false;  // Of held sequences: progress was told about the cached prefix.
  int published_pages = 0;       // Leading pages that are in the prefix index.
  uint64_t page_chain = 0;       // Hash of the last of them; 0: not known.
  uint64_t serial = 0;           // Of no other sequence of the engine, also not of one with the same id later.
  int unknown_tokens = 0;        // Last tokens that were sampled by steps which are not collected yet.
  bool is_closing = false;       // The last of these ends it, whatever it is: no step is planned for it.

  std::vector<TokenId>& tokens() { return request.tokens; }
  const std::vector<TokenId>& tokens() const { return request.tokens; }
  int known_tokens() const { return num_tokens() - unknown_tokens; }
  int num_tokens() const { return static_cast<int>(request.tokens.size()); }
  absl::Span<const TokenId> prompt() const {
    return absl::MakeConstSpan(request.tokens).subspan(0, request.prompt_tokens);
  }
  absl::Span<const TokenId> output() const {
    return absl::MakeConstSpan(request.tokens).subspan(request.prompt_tokens);
  }
};

}  // namespace tandem
