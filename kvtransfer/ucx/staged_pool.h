#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/ucx/staged_messages.h"
#include "kvtransfer/ucx/ucx_staged_transport.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace tandem {

// The writer's side of a staged link: gathers what waits into chunks, as many as both sides have buffers for, and sends
// them; a chunk's buffer is free again when the owner has said that it is in the pool.
//
// Thread-safety: the link thread only.
// Ownership: owns its UCX worker, endpoint and buffers; borrows the memory.
class StagedPool final : public RemotePool, private UcxWorker {
 public:
  StagedPool(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, const PoolExport& pool,
             const StagedLimits& limits);
  ~StagedPool() override;
  // Connects to the owner's address.
  absl::Status Start(const std::string& address);

  absl::Status Write(WriteOrder order) override;
  absl::StatusOr<bool> PollFlushed() override;
  std::string path() const override { return UcxLanes(endpoint_); }
  void Progress() override;
  bool PrepareToSleep() override;

 private:
  enum class State { kFree, kGathering, kSent };
  struct Chunk {
    std::unique_ptr<PoolBuffer> buffer;  // From its first use on.
    State state = State::kFree;
    uint64_t number = 0;
    int64_t bytes = 0;
    std::vector<ChunkRun> runs;
    std::unique_ptr<PendingCopy> gather;
    StagedRequest runs_request, data_request;
    bool is_scattered = false;
  };
  struct WaitingRun {
    const uint8_t* source_base;
    CopyRun run;
  };

  static ucs_status_t OnMessage(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param);
  void AdvanceAll();
  absl::Status Advance(Chunk& chunk);
  // Takes what waits, as much as there is room for and one source has.
  absl::Status Gather(Chunk& chunk);
  absl::Status SendChunk(Chunk& chunk);

  PoolMemory& memory_;
  const PoolMemory::Place place_;
  const bool on_device_;  // The buffers.
  const uint64_t size_bytes_, chunk_bytes_;
  ucp_ep_h endpoint_ = nullptr;
  std::string own_address_;  // Until it is sent.
  StagedRequest address_request_;
  std::deque<WaitingRun> waiting_;
  std::vector<Chunk> chunks_;
  uint64_t next_chunk_ = 1;
  absl::Status error_;
};

}  // namespace tandem
