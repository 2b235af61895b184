#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/queue_place.h"
#include "common/sampling_params.h"

namespace tandem {

enum class RequestFinish { kNone, kStop, kLength };

// Where a sample's time went; zero for stages that did not happen.
struct StageDurations {
  absl::Duration queue, prefill, transfer, handover, decode;
};

struct RequestUsage {
  int prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, retries = 0;
  int longest_sample = 0;  // Completion tokens; of a call.
  StageDurations stages;
  absl::Duration latency;  // Arrival to the last token.
  std::string prefill_worker, decode_worker;
};

// Something new of one sample.
struct SampleUpdate {
  int index = 0;
  std::string text;
  std::vector<SampledToken> tokens;
  RequestFinish finish = RequestFinish::kNone;
  // Since arrival, when the sample's first token is in this update; else since its last update.
  bool has_first_token = false;
  absl::Duration latency;
};

// Where a call's output goes: a gRPC or HTTP stream, or a test.
//
// Thread-safety: called on the router's owner thread only; must not block.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void Write(SampleUpdate update) = 0;
  // The last word of the call. With OK, `usage` sums up all samples.
  virtual void Finish(const absl::Status& status, const RequestUsage& usage) = 0;
};

// The W3C trace that a call belongs to.
struct TraceContext {
  std::string trace_id, parent_id;  // In hex; empty: none.
  bool is_sampled = false;
  bool is_set() const { return !trace_id.empty(); }
};

// A client's call in native form: validated, tokenised, ready to be placed.
struct Request {
  std::string name;  // The client's request id.
  int tenant = -1;   // As ApiKeys has it.
  std::vector<TokenId> prompt;
  bool opens_reasoning = false;  // The chat template ended the prompt within the model's reasoning.
  SamplingParams sampling;
  std::vector<std::string> stops;
  int priority = 0;
  uint64_t affinity = 0;  // As PlacementRequest has it.
  int num_samples = 1;
  absl::Time deadline = absl::InfiniteFuture();
  absl::Duration ttft_limit = absl::InfiniteDuration(), tpot_limit = ttft_limit;  // As ServiceTier has them.
  absl::Time arrival;
  TraceContext trace;
  // Who names no time, or a late one, waits as if the first token were wanted so long after the arrival: among those
  // of one priority nobody is passed by what comes later than that.
  static constexpr absl::Duration kPatience = absl::Seconds(30);
  QueuePlace place() const { return {priority, std::min(deadline, arrival + std::min(ttft_limit, kPatience))}; }

  // Co-owners: the call's stream, which may end first.
  std::shared_ptr<ResponseSink> sink;
};

}  // namespace tandem
