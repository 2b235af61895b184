#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kvtransfer/nvlink/gpu_driver.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/nvlink/page_pusher.h"
#include "kvtransfer/transport.h"

namespace tandem {

// A peer's GPU pool, mapped here.
//
// Thread-safety: the link thread only.
// Ownership: owns the mapping until its last copy has ended, for which the destructor waits.
class NvlinkPool : public RemotePool {
 public:
  // As Write, at once, and with a flag that the peer may wait at: null, or memory that the device maps. UNAVAILABLE:
  // too many pushes are under way. OUT_OF_RANGE: more runs than a list has room for.
  virtual absl::StatusOr<CopyChoice> Push(const uint8_t* source_base, absl::Span<const CopyRun> runs, uint32_t* flag,
                                          uint32_t flag_value, std::optional<CopyChoice> forced = std::nullopt,
                                          PagePusher::SumsWanted sums = {}) = 0;
  virtual uint8_t* base() const = 0;
  virtual PagePusher& pusher() = 0;
  // Whether the peer's device is one that this process sees.
  virtual bool sees_device() const = 0;
};

// Pools in GPU memory that peers map: by descriptor on one host, by fabric handle in one NVLink domain. Pages are
// pushed by our own kernel or by the copy engine.
//
// Thread-safety, ownership: as of Transport; outlives the pools that it opened; borrows driver and own pool, which
// outlive it.
class NvlinkTransport : public Transport {
 public:
  struct Options {
    int device = 0;
    const GpuPool* pool = nullptr;  // Its own: what is exported, and what is written from.
    std::function<bool()> source_is_computing;
  };
  // RESOURCE_EXHAUSTED: no memory for copy lists.
  static absl::StatusOr<std::unique_ptr<NvlinkTransport>> Create(GpuDriver& driver, Options options);
  // As Open, and more of what it makes.
  virtual absl::StatusOr<std::unique_ptr<NvlinkPool>> OpenPool(const PoolExport& pool) = 0;
};

}  // namespace tandem
