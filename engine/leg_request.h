#pragma once

#include "absl/time/time.h"
#include "common/worker_messages.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace tandem {

// The engine's form of a leg that a router started.
SequenceRequest ToSequenceRequest(const StartLeg& leg, absl::Time now);

// The router's form of an engine event.
LegEvent ToLegEvent(SequenceEvent event);

}  // namespace tandem
