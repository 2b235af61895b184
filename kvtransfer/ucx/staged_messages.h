#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace tandem {

// What the two sides of a staged link say to each other, as active messages of UCX.

inline constexpr unsigned kStagedMessageId = 1;
inline constexpr size_t kMaxRunsOfChunk = 16'384;

// In front of every message.
struct StagedHeader {
  enum class Kind : uint32_t {
    kAddress,    // Writer: its UCX address follows, for the answers. First.
    kRuns,       // Writer: [n] ChunkRun follow.
    kData,       // Writer: the chunk's bytes follow.
    kScattered,  // Owner: they are in the pool.
    kRefused,    // Owner: they are not, and no chunk will be taken any more.
  };
  Kind kind = Kind::kAddress;
  uint32_t reserved = 0;
  uint64_t chunk = 0;  // Counts up on each link.
};
// Where a stretch of the chunk belongs, in the order in which it holds them.
struct ChunkRun {
  int64_t destination = 0, bytes = 0;
};
// What the owner has room for: PoolExport::remote_key.
struct StagedLimits {
  uint64_t chunk_bytes = 0, buffers = 0;
};

// A message that is on its way. What it reads or writes must live until it has ended, or until its worker has.
//
// Thread-safety: the link thread only. Ownership: owns UCX's request; its end does not end the message.
class StagedRequest {
 public:
  StagedRequest() = default;
  StagedRequest(StagedRequest&& other) noexcept : request_(std::exchange(other.request_, nullptr)) {}
  StagedRequest& operator=(StagedRequest&& other) noexcept {
    std::swap(request_, other.request_);
    return *this;
  }
  ~StagedRequest() {
    if (request_ != nullptr) ucp_request_free(request_);
  }

  // Takes over what UCX returned for `what`.
  absl::Status Begin(ucs_status_ptr_t request, absl::string_view what) {
    if (UCS_PTR_IS_ERR(request)) return UcxStatus(UCS_PTR_STATUS(request), what);
    request_ = request;
    return absl::OkStatus();
  }
  absl::StatusOr<bool> PollEnded() {
    if (request_ == nullptr) return true;
    const ucs_status_t status = ucp_request_check_status(request_);
    if (status == UCS_INPROGRESS) return false;
    ucp_request_free(std::exchange(request_, nullptr));
    if (status != UCS_OK) return UcxStatus(status, "UCX message");
    return true;
  }
  // For whoever frees it; null: it has ended.
  ucs_status_ptr_t Take() { return std::exchange(request_, nullptr); }

 private:
  ucs_status_ptr_t request_ = nullptr;
};

// Lets `callback` take the messages of a worker.
absl::Status TakeStagedMessages(ucp_worker_h worker, ucp_am_recv_callback_t callback, void* argument);
// Lets nobody take them: they are dropped as they come.
void DropStagedMessages(ucp_worker_h worker);

// Sends a header with what follows it, which must live until `request` has ended. What follows a header that is not of
// a chunk must fit UCX's shortest kind of message, as addresses do.
absl::Status SendStaged(ucp_ep_h endpoint, const StagedHeader& header, const void* data, size_t bytes, bool on_device,
                        StagedRequest& request);

}  // namespace tandem
