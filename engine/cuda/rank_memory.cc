#include "engine/cuda/rank_memory.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {
namespace {

// Large enough that the driver gives each piece pages of its own, so that a handle is of this piece alone.
constexpr size_t kGranularity = size_t{2} << 20;

// How a rank tells the others of its piece.
struct Invitation {
  pid_t pid = 0;
  int device = 0;
  void* memory = nullptr;  // In that process.
  cudaIpcMemHandle_t handle = {};
};

absl::Status Unreachable(int rank, int device, cudaError_t error) {
  cudaGetLastError();
  return absl::FailedPreconditionError(absl::StrCat("the memory of rank ", rank, " (its GPU ", device,
                                                    ") cannot be reached from others: ", cudaGetErrorString(error),
                                                    "; ranks need GPUs that reach each other, all visible to each"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankMemory>> RankMemory::Create(RankGroup& ranks, size_t bytes) {
  std::unique_ptr<RankMemory> memory(new RankMemory);
  ASSIGN_OR_RETURN(memory->own_,
                   DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, (std::max<size_t>(bytes, 1) + kGranularity - 1) /
                                                                           kGranularity * kGranularity));
  Invitation own{.pid = getpid(), .memory = memory->own()};
  CheckCuda(cudaGetDevice(&own.device), "cudaGetDevice");
  if (const cudaError_t error = cudaIpcGetMemHandle(&own.handle, memory->own()); error != cudaSuccess) {
    return Unreachable(ranks.rank(), own.device, error);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> all,
                   ranks.Exchange(absl::string_view(reinterpret_cast<const char*>(&own), sizeof(own))));
  memory->pointers_.rank = ranks.rank();
  memory->pointers_.size = ranks.size();
  for (int rank = 0; rank < ranks.size(); ++rank) {
    Invitation invitation;
    if (all[rank].size() != sizeof(invitation)) return absl::InternalError("a rank's invitation has another size");
    std::memcpy(&invitation, all[rank].data(), sizeof(invitation));
    void*& pointer = memory->pointers_.of_rank[rank];
    if (rank == ranks.rank()) {
      pointer = memory->own();
    } else if (invitation.pid == own.pid) {
      const cudaError_t error = cudaDeviceEnablePeerAccess(invitation.device, 0);
      if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) {
        return Unreachable(rank, invitation.device, error);
      }
      cudaGetLastError();
      pointer = invitation.memory;
    } else {
      const cudaError_t error = cudaIpcOpenMemHandle(&pointer, invitation.handle, cudaIpcMemLazyEnablePeerAccess);
      if (error != cudaSuccess) return Unreachable(rank, invitation.device, error);
      memory->mapped_.push_back(pointer);
    }
  }
  return memory;
}

RankMemory::~RankMemory() {
  for (void* mapped : mapped_) cudaIpcCloseMemHandle(mapped);
}

}  // namespace tandem
