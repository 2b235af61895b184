#pragma once

#include <nccl.h>

#include "absl/status/statusor.h"

namespace tandem {

// The functions of NCCL that are used here, found when they are first wanted: only workers of several ranks need it.
struct NcclLibrary {
  decltype(&ncclGetUniqueId) make_id = nullptr;
  decltype(&ncclCommInitRank) join = nullptr;
  decltype(&ncclCommAbort) leave = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclGetErrorString) error_text = nullptr;
};

// UNAVAILABLE: the machine has no NCCL, or not where libraries are looked for.
absl::StatusOr<const NcclLibrary*> LoadNccl();

}  // namespace tandem
