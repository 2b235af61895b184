#include "kvtransfer/loopback/loopback_transport.h"

#include <cstring>
#include <utility>
#include <vector>

#include "common/status_macros.h"

namespace tandem {
namespace {

class LoopbackPool final : public RemotePool {
 public:
  LoopbackPool(uint8_t* base, uint64_t size_bytes) : base_(base), size_bytes_(size_bytes) {}
  absl::Status Write(const uint8_t* source_base, absl::Span<const CopyRun> runs) override {
    RETURN_IF_ERROR(CheckRuns(runs, size_bytes_));
    for (const CopyRun& run : runs) std::memcpy(base_ + run.destination, source_base + run.source, run.bytes);
    return absl::OkStatus();
  }
  absl::StatusOr<bool> PollFlushed() override { return true; }

 private:
  uint8_t* const base_;
  const uint64_t size_bytes_;
};

class FaultyPool final : public RemotePool {
 public:
  FaultyPool(std::unique_ptr<RemotePool> pool, const TransferFaults& faults)
      : pool_(std::move(pool)), faults_(faults) {}

  absl::Status Write(const uint8_t* source_base, absl::Span<const CopyRun> runs) override {
    ++writes_;
    polls_left_ = faults_.delay_polls;
    if (IsTurn(faults_.drop_write_every) || runs.empty()) return absl::OkStatus();
    if (IsTurn(faults_.flip_byte_every)) return WriteDamaged(source_base, runs);
    if (IsTurn(faults_.duplicate_write_every)) RETURN_IF_ERROR(pool_->Write(source_base, runs));
    return pool_->Write(source_base, runs);
  }

  absl::StatusOr<bool> PollFlushed() override {
    if (polls_left_-- > 0) return false;
    polls_left_ = 0;
    if (IsTurn(faults_.fail_flush_every)) return absl::UnavailableError("fault point: the flush failed");
    return pool_->PollFlushed();
  }

 private:
  bool IsTurn(int every) const { return every > 0 && writes_ % every == 0; }

  // Writes all but the first run as they are, and that one with a byte changed.
  absl::Status WriteDamaged(const uint8_t* source_base, absl::Span<const CopyRun> runs) {
    RETURN_IF_ERROR(pool_->Write(source_base, runs.subspan(1)));
    damaged_.emplace_back(source_base + runs[0].source, source_base + runs[0].source + runs[0].bytes);
    damaged_.back()[runs[0].bytes / 2] ^= 1;
    CopyRun run{0, runs[0].destination, runs[0].bytes};
    return pool_->Write(damaged_.back().data(), {run});
  }

  const std::unique_ptr<RemotePool> pool_;
  const TransferFaults faults_;
  int64_t writes_ = 0;
  int polls_left_ = 0;
  std::vector<std::vector<uint8_t>> damaged_;  // Kept: an asynchronous pool may still read them.
};

class LoopbackTransport final : public Transport {
 public:
  explicit LoopbackTransport(const TransferFaults& faults) : faults_(faults) {}
  absl::string_view name() const override { return "loopback"; }
  absl::StatusOr<PoolExport> Export(uint8_t* base, uint64_t size_bytes) override {
    return PoolExport{
        .transport = "loopback", .base_address = reinterpret_cast<uint64_t>(base), .size_bytes = size_bytes};
  }
  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    auto opened = std::make_unique<LoopbackPool>(reinterpret_cast<uint8_t*>(pool.base_address), pool.size_bytes);
    return WithFaults(std::move(opened), faults_);
  }

 private:
  const TransferFaults faults_;
};

}  // namespace

std::unique_ptr<Transport> NewLoopbackTransport(const TransferFaults& faults) {
  return std::make_unique<LoopbackTransport>(faults);
}

std::unique_ptr<RemotePool> WithFaults(std::unique_ptr<RemotePool> pool, const TransferFaults& faults) {
  if (!faults.any()) return pool;
  return std::make_unique<FaultyPool>(std::move(pool), faults);
}

}  // namespace tandem
