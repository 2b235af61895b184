#include "engine/leg_request.h"

#include <utility>

namespace tandem {
namespace {

LegFinish ToLegFinish(FinishReason finish) {
  switch (finish) {
    case FinishReason::kNone:
      return LegFinish::kNone;
    case FinishReason::kStop:
      return LegFinish::kStop;
    case FinishReason::kLength:
      return LegFinish::kLength;
  }
  return LegFinish::kNone;
}

}  // namespace

SequenceRequest ToSequenceRequest(const StartLeg& leg, absl::Time now) {
  SequenceRequest request;
  request.id = leg.id;
  request.tokens = leg.tokens;
  request.prompt_tokens = static_cast<int>(leg.tokens.size()) - leg.output_tokens;
  request.sampling = leg.sampling;
  request.place = {leg.priority, now + leg.due};
  request.deadline = now + leg.remaining;
  return request;
}

LegEvent ToLegEvent(SequenceEvent event) {
  LegEvent out{.id = event.id, .finish = ToLegFinish(event.finish), .error = std::move(event.error)};
  if (event.token.has_value()) out.tokens.push_back(*std::move(event.token));
  if (event.first_token) {
    out.cached_tokens = event.cached_tokens;
    out.queue = event.queue_time;
    out.prefill = event.prefill_time;
  }
  return out;
}

}  // namespace tandem
