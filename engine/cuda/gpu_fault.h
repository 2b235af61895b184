#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// What goes wrong on a GPU, for tests and fault drills.
struct GpuFault {
  enum class Kind {
    kNone,
    kIllegalAccess,  // A kernel writes where nothing is mapped.
    kHang,           // A kernel does not end.
    kOutOfMemory     // Memory is asked for that the device does not have.
  };
  Kind kind = Kind::kNone;
  int64_t step = 0;  // In which of the engine's steps; those before the worker serves count, too.
};

// As TANDEM_GPU_FAULT has it: "illegal_access@40", "hang@40" or "out_of_memory@40". INVALID_ARGUMENT: anything else.
absl::StatusOr<GpuFault> ParseGpuFault(absl::string_view text);

// Makes it happen: behind what is enqueued in the stream, or, out of memory, at once.
void CauseGpuFault(GpuFault::Kind kind, cudaStream_t stream);

}  // namespace tandem
