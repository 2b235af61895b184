#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvtransfer/page_sums.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/transfer_plan.h"

namespace tandem {

// How a peer reaches a pool; what it means is the transport's own.
struct PoolExport {
  std::string transport;  // "shm", "nvlink", "ucx", "ucx_staged", "ucx_host_staged" or "loopback".
  std::string address;
  std::string remote_key;
  uint64_t base_address = 0;
  uint64_t size_bytes = 0;
};

// The local pool, open to the writes of one peer.
//
// Thread-safety: the link thread only.
class ExportedPool {
 public:
  virtual ~ExportedPool() = default;
  // How the peer reaches it.
  virtual const PoolExport& description() const = 0;
  // Whether no byte of the peer lands after the end of this object, whatever the peer does.
  virtual bool revocable() const = 0;
  // An error: the peer's writes are taken no more, and the link must end.
  virtual absl::Status status() const { return absl::OkStatus(); }
};

// One write into a peer's pool.
struct WriteOrder {
  const uint8_t* source_base = nullptr;
  std::vector<CopyRun> runs;
  // Where checksums are on: gets the sums of what was read, before PollFlushed is true. The runs are those of
  // CutAtPages then, with these pages. The writer and nobody else touches it until then.
  std::shared_ptr<PageSums> sums;
  std::vector<uint32_t> page_of_run;
};

// A peer's pool, open for one-sided writes.
//
// Thread-safety: the link thread only.
// Ownership: owns its mapping or endpoint, and reads the source no more once it is destroyed; the
// peer owns the memory and may die at any time: writes then go nowhere, and only the link's control
// connection tells.
class RemotePool {
 public:
  virtual ~RemotePool() = default;
  // Starts copying, and does not wait, but for the sums where it cannot take them as it copies. The source must stay
  // unchanged until PollFlushed is true.
  // OUT_OF_RANGE: a run leaves the pool; nothing was written.
  virtual absl::Status Write(WriteOrder order) = 0;
  // True when everything written so far can be read at the destination. An error is final: the link
  // is lost.
  virtual absl::StatusOr<bool> PollFlushed() = 0;
  // What connects the two ends, read back from the library that chose it: the lanes of an endpoint ("tcp/lo").
  virtual std::string path() const { return "mapped memory"; }
};

// One way of moving bytes between processes.
//
// Thread-safety: the link thread only, or before it starts.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual absl::string_view name() const = 0;
  // Whether only processes of one host reach each other.
  virtual bool same_host_only() const { return false; }
  // Opens the local pool, always the same one, to one more peer. FAILED_PRECONDITION when it cannot
  // be exported so.
  virtual absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) = 0;
  // UNAVAILABLE when the pool cannot be reached from here.
  virtual absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) = 0;
  // Moves what is under way forward; cheap when nothing is.
  virtual void Progress() {}
  // Readable when Progress has something to do; -1 when it never has.
  virtual int event_fd() const { return -1; }
  // Called before sleeping on event_fd: false when Progress must be called again first.
  virtual bool PrepareToSleep() { return true; }
};

// An exported pool whose peer cannot be kept from writing: a mapping in its address space.
class MappedExport final : public ExportedPool {
 public:
  explicit MappedExport(PoolExport description) : description_(std::move(description)) {}
  const PoolExport& description() const override { return description_; }
  bool revocable() const override { return false; }

 private:
  const PoolExport description_;
};

// OUT_OF_RANGE unless each run lies in a destination of `size_bytes`.
absl::Status CheckRuns(absl::Span<const CopyRun> runs, uint64_t size_bytes);
// Adds the sums that the order asks for, if it does, from its source in `memory`. INTERNAL: a device failed.
absl::Status AddSums(PoolMemory& memory, const WriteOrder& order);

}  // namespace tandem
