#include "kvtransfer/pool_memory.h"

#include <cstring>
#include <utility>
#include <vector>

#include "common/status_macros.h"

namespace tandem {
namespace {

class HostBuffer final : public PoolBuffer {
 public:
  explicit HostBuffer(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}
  uint8_t* base() const override { return const_cast<uint8_t*>(bytes_.data()); }

 private:
  std::vector<uint8_t> bytes_;
};

class EndedCopy final : public PendingCopy {
 public:
  absl::StatusOr<bool> PollEnded() override { return true; }
  void Wait() override {}
};

class HostPoolMemory final : public PoolMemory {
 public:
  bool is_device() const override { return false; }
  void UseOnThisThread() const override {}
  void WaitForDevice() const override {}
  absl::StatusOr<std::unique_ptr<PoolBuffer>> Allocate(uint64_t bytes, Place) override {
    return std::make_unique<HostBuffer>(std::vector<uint8_t>(bytes));
  }
  absl::StatusOr<std::unique_ptr<PoolBuffer>> MakeCopy(absl::Span<const uint8_t> content) override {
    return std::make_unique<HostBuffer>(std::vector<uint8_t>(content.begin(), content.end()));
  }
  absl::Status Read(const uint8_t* from, absl::Span<uint8_t> out) override {
    std::memcpy(out.data(), from, out.size());
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<PendingCopy>> StartCopy(const uint8_t* from, uint8_t* to,
                                                         absl::Span<const CopyRun> runs) override {
    for (const CopyRun& run : runs) std::memcpy(to + run.destination, from + run.source, run.bytes);
    return std::make_unique<EndedCopy>();
  }
  absl::Status AddSums(const uint8_t* pool, PoolSide side, absl::Span<const CopyRun> runs,
                       absl::Span<const uint32_t> page_of_run, PageSums& sums) override {
    AddHostSums(pool, side, runs, page_of_run, sums);
    return absl::OkStatus();
  }
};

}  // namespace

PoolMemory& HostMemory() {
  static HostPoolMemory memory;
  return memory;
}

}  // namespace tandem
