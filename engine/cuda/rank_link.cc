#include "engine/cuda/rank_link.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/rank_kernels.h"

namespace tandem {
namespace {

// Up to so many bytes of a summand the kernel is used: each rank reads those of all others.
constexpr int64_t kMostKernelBytes = int64_t{2} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<RankLink>> RankLink::Create(RankGroup& ranks, int max_rows, cudaStream_t stream) {
  std::unique_ptr<RankLink> link(new RankLink(ranks, stream));
  ASSIGN_OR_RETURN(link->nccl_, LoadNccl());
  ASSIGN_OR_RETURN(link->flags_, RankMemory::Create(ranks, kMaxRankBlocks * kMaxRanks * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(link->tokens_, RankMemory::Create(ranks, max_rows * sizeof(int32_t)));
  ASSIGN_OR_RETURN(link->rounds_,
                   DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, kMaxRankBlocks * sizeof(uint32_t)));
  link->signals_ = {link->flags_->pointers(), link->rounds_.as<uint32_t>()};
  ncclUniqueId id = {};
  if (ranks.rank() == 0) link->CheckNccl(link->nccl_->make_id(&id), "ncclGetUniqueId");
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, ranks.Exchange(absl::string_view(id.internal, sizeof(id))));
  std::memcpy(&id, ids[0].data(), sizeof(id));
  link->CheckNccl(link->nccl_->join(&link->communicator_, ranks.size(), id, ranks.rank()), "ncclCommInitRank");
  return link;
}

RankLink::~RankLink() {
  // Not an end that all ranks come to together: some may be gone.
  if (communicator_ != nullptr) nccl_->leave(communicator_);
}

void RankLink::CheckNccl(ncclResult_t result, const char* call) const {
  if (result != ncclSuccess) EndAfterGpuFailure(call, nccl_->error_text(result));
}

void RankLink::AddRanks(const CudaActivation& summand, int rows, CudaActivation& out) {
  const int64_t elements = rows * out.columns();
  if (elements * static_cast<int64_t>(sizeof(Bf16)) <= kMostKernelBytes) {
    CheckCuda(LaunchAddRanks(signals_, summand.of_ranks(), elements, out.data(), stream_), "LaunchAddRanks");
    return;
  }
  CheckNccl(nccl_->all_reduce(summand.data(), summand.data(), elements, ncclBfloat16, ncclSum, communicator_, stream_),
            "ncclAllReduce");
  CheckCuda(LaunchAdd(summand.data(), elements, out.data(), stream_), "LaunchAdd");
}

void RankLink::JoinRanks(const CudaActivation& part, int rows, CudaActivation& out) {
  CheckCuda(
      LaunchJoinRanks(signals_, part.of_ranks(), rows, static_cast<int>(part.columns()), out.data<float>(), stream_),
      "LaunchJoinRanks");
}

void RankLink::ShareTokens(const int32_t* tokens, int rows) {
  CheckCuda(LaunchShareTokens(signals_, tokens_->pointers(), tokens, rows, stream_), "LaunchShareTokens");
}

}  // namespace tandem
