#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/rank_kernels.h"
#include "engine/rank_group.h"

namespace tandem {

// Device memory that every rank has a piece of, of the same size, and that the kernels of all ranks read and write.
//
// Thread-safety: immutable but for what it holds.
// Ownership: owns its piece and the mappings of the others'. All ranks destroy theirs after the kernels of all ended.
class RankMemory {
 public:
  // All ranks call, in the same order, on a thread whose device is the rank's; zeros at first. RESOURCE_EXHAUSTED: no
  // memory. FAILED_PRECONDITION: another rank's cannot be reached.
  static absl::StatusOr<std::unique_ptr<RankMemory>> Create(RankGroup& ranks, size_t bytes);
  ~RankMemory();

  const RankPointers& pointers() const { return pointers_; }
  void* own() const { return own_.as<void>(); }

 private:
  RankMemory() = default;
  DeviceMemory own_;
  RankPointers pointers_;
  std::vector<void*> mapped_;  // Other processes'.
};

}  // namespace tandem
