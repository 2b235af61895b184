#include "engine/cuda/gpu_fault.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/fault_kernels.h"

namespace tandem {

absl::StatusOr<GpuFault> ParseGpuFault(absl::string_view text) {
  const std::pair<absl::string_view, GpuFault::Kind> kinds[] = {{"illegal_access", GpuFault::Kind::kIllegalAccess},
                                                                {"hang", GpuFault::Kind::kHang},
                                                                {"out_of_memory", GpuFault::Kind::kOutOfMemory}};
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('@', 1));
  GpuFault fault;
  for (const auto& [name, kind] : kinds) {
    if (parts.first == name) fault.kind = kind;
  }
  if (fault.kind == GpuFault::Kind::kNone || !absl::SimpleAtoi(parts.second, &fault.step) || fault.step < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "TANDEM_GPU_FAULT: expected illegal_access, hang or out_of_memory, @ and a step, not \"", text, "\""));
  }
  return fault;
}

void CauseGpuFault(GpuFault::Kind kind, cudaStream_t stream) {
  switch (kind) {
    case GpuFault::Kind::kNone:
      return;
    case GpuFault::Kind::kIllegalAccess:
      return CheckCuda(LaunchWriteNowhere(stream), "LaunchWriteNowhere");
    case GpuFault::Kind::kHang:
      return CheckCuda(LaunchSpinForEver(stream), "LaunchSpinForEver");
    case GpuFault::Kind::kOutOfMemory:
      void* memory = nullptr;
      return CheckCuda(cudaMalloc(&memory, size_t{1} << 45), "cudaMalloc");
  }
}

}  // namespace tandem
