#include "engine/cuda/cuda_ops.h"

// In place of the rest of this folder, in a build without CUDA.

namespace tandem {
namespace {

absl::Status NoCuda() {
  return absl::UnimplementedError("device cuda: this build has no code for GPUs; build the preset cuda-release");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> NewCudaOps(const CudaOpsOptions&, const ModelConfig&) { return NoCuda(); }
absl::Status CheckCudaModel(const ModelConfig&, int) { return NoCuda(); }
int64_t CudaWeightBytes(const Checkpoint&, int) { return 0; }
absl::StatusOr<int64_t> FreeDeviceBytes(int) { return NoCuda(); }

}  // namespace tandem
