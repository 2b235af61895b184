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

// The owner's side of a staged link: takes chunks, scatters them into the pool and says so. Only this side writes to
// the pool. After the first chunk that it cannot take it takes none: the writer gives the link up.
//
// Thread-safety: the link thread only.
// Ownership: owns its UCX worker, endpoint and buffers; borrows the memory and the pool, to which nothing is written
// once it is destroyed.
class StagedExport final : public ExportedPool, private UcxWorker {
 public:
  StagedExport(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, uint8_t* base,
               uint64_t size_bytes);
  ~StagedExport() override;
  absl::Status Start(absl::string_view transport);

  const PoolExport& description() const override { return description_; }
  bool revocable() const override { return true; }
  absl::Status status() const override { return error_; }
  void Progress() override;
  bool PrepareToSleep() override;

 private:
  // One of a chunk's two messages.
  struct Part {
    void* descriptor = nullptr;  // UCX's, of what has come and is not received yet.
    size_t bytes = 0;
    bool has_come = false;
    bool is_complete = false;
    StagedRequest request;
  };
  struct Chunk {
    std::unique_ptr<PoolBuffer> buffer;  // From its first use on.
    bool is_used = false;
    uint64_t number = 0;
    std::vector<ChunkRun> runs;
    Part runs_part, data_part;
    std::unique_ptr<PendingCopy> scatter;
    bool must_poll = false;  // Nothing tells when it goes on.
  };

  static ucs_status_t OnMessage(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param);
  // UCS_INPROGRESS: `data` is kept.
  ucs_status_t Take(const StagedHeader& header, void* data, size_t bytes, bool is_there);
  // The chunk of that number, or an unused one for it; null: more come than were offered room.
  Chunk* FindChunk(uint64_t number);
  // Carries a chunk on; true: it is in the pool.
  absl::StatusOr<bool> Advance(Chunk& chunk);
  absl::StatusOr<bool> Receive(Part& part, void* to, bool on_device);
  absl::StatusOr<bool> Scatter(Chunk& chunk);
  void Answer(StagedHeader::Kind kind, uint64_t chunk);
  // Tells the writer, and takes no chunk any more.
  void Fail(uint64_t chunk, const absl::Status& cause);

  PoolMemory& memory_;
  const PoolMemory::Place place_;
  const bool on_device_;  // The buffers.
  uint8_t* const base_;
  const uint64_t size_bytes_, chunk_bytes_;
  PoolExport description_;
  std::vector<Chunk> chunks_;
  ucp_ep_h endpoint_ = nullptr;  // To the writer, once it has said where it is.
  std::deque<StagedRequest> answers_;
  absl::Status error_;  // Of the endpoint, or of a chunk.
};

}  // namespace tandem
