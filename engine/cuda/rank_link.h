#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "engine/cuda/cuda_tensors.h"
#include "engine/cuda/nccl_library.h"
#include "engine/cuda/rank_memory.h"
#include "engine/rank_group.h"

namespace tandem {

// What the ranks' devices do together (engine/ops.h): a kernel that reads the others' memory for what a decoding step
// sums, NCCL for more.
//
// Thread-safety: not thread-safe. Ownership: owns memory and the communicator; group and stream outlive it.
class RankLink {
 public:
  // All ranks call, on a thread whose device is the rank's. UNAVAILABLE: no NCCL. Errors as of RankMemory::Create.
  static absl::StatusOr<std::unique_ptr<RankLink>> Create(RankGroup& ranks, int max_rows, cudaStream_t stream);
  ~RankLink();

  RankGroup& ranks() const { return ranks_; }
  // Rank 0's last tokens, on the other ranks.
  const int32_t* tokens() const { return static_cast<const int32_t*>(tokens_->own()); }

  // As the ops of these names.
  void AddRanks(const CudaActivation& summand, int rows, CudaActivation& out);
  void JoinRanks(const CudaActivation& part, int rows, CudaActivation& out);
  void ShareTokens(const int32_t* tokens, int rows);

 private:
  RankLink(RankGroup& ranks, cudaStream_t stream) : ranks_(ranks), stream_(stream) {}
  void CheckNccl(ncclResult_t result, const char* call) const;

  RankGroup& ranks_;
  const cudaStream_t stream_;
  const NcclLibrary* nccl_ = nullptr;
  ncclComm_t communicator_ = nullptr;
  std::unique_ptr<RankMemory> flags_, tokens_;
  DeviceMemory rounds_;
  RankSignals signals_;
};

}  // namespace tandem
