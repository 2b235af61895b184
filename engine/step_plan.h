#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/ops.h"

namespace tandem {

// A step that rank 0 has planned, as the other ranks get it.
struct StepPlan {
  StepPlan() = default;
  StepPlan(StepPlan&&) = default;  // No copy: the batch would point into the other's pages.
  StepPlan& operator=(StepPlan&&) = default;
  StepBatch batch;
  std::vector<PageIndex> pages;  // That the batch's sequences point to.
  bool samples = false;          // Tokens are chosen of its logits, and shared.
};

// For processes of one program on one machine: integers as they lie in memory.
std::string EncodeStepPlan(const StepBatch& batch, bool samples);
// INVALID_ARGUMENT: no whole plan.
absl::StatusOr<StepPlan> DecodeStepPlan(absl::string_view text);

}  // namespace tandem
