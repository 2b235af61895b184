#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/sampling_params.h"

namespace tandem {

// What routers and workers say to each other, in native form; proto/tandem/v1/worker.proto says
// what each field means.

struct StartLeg {
  RequestId id;
  std::string name;          // The client's request id.
  std::string trace_parent;  // W3C's, of the client's call; empty: none.
  std::vector<TokenId> tokens;
  int output_tokens = 0;
  SamplingParams sampling;
  int priority = 0;
  absl::Duration remaining = absl::InfiniteDuration();
  absl::Duration due = absl::InfiniteDuration();  // When the first token is wanted; negative: it is late.
  std::string peer_worker;
  Incarnation peer;
  HandoverId handover;
};

struct CancelLeg {
  RequestId id;
  Incarnation retarget;  // Not set: just cancel.
  std::string retarget_worker;
  HandoverId handover;
};

struct CommandFrame {
  std::vector<StartLeg> starts;
  std::vector<CancelLeg> cancels;
};

enum class LegFinish { kNone, kStop, kLength, kHandedOver };

struct LegEvent {
  RequestId id;
  std::vector<SampledToken> tokens;
  LegFinish finish = LegFinish::kNone;
  absl::Status error;           // Not OK: the leg is gone.
  absl::Status handover_error;  // Not OK: the KV is held, but must go elsewhere.
  HandoverId handover;          // Which, with handover_error and LegFinish::kHandedOver.
  bool taken_over = false;
  int cached_tokens = 0;
  absl::Duration queue, prefill, transfer;
};

struct EventFrame {
  std::vector<LegEvent> events;
};

}  // namespace tandem
