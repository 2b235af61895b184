#include "kvtransfer/loopback/loopback_transport.h"

#include <cstring>

#include "common/status_macros.h"

namespace tandem {
namespace {

class LoopbackPool final : public RemotePool {
 public:
  LoopbackPool(uint8_t* base, uint64_t size_bytes) : base_(base), size_bytes_(size_bytes) {}
  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    RETURN_IF_ERROR(AddSums(HostMemory(), order));
    for (const CopyRun& run : order.runs) {
      std::memcpy(base_ + run.destination, order.source_base + run.source, run.bytes);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<bool> PollFlushed() override { return true; }

 private:
  uint8_t* const base_;
  const uint64_t size_bytes_;
};

class LoopbackTransport final : public Transport {
 public:
  absl::string_view name() const override { return "loopback"; }
  bool same_host_only() const override { return true; }
  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    return std::make_unique<MappedExport>(PoolExport{
        .transport = "loopback", .base_address = reinterpret_cast<uint64_t>(base), .size_bytes = size_bytes});
  }
  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    return std::make_unique<LoopbackPool>(reinterpret_cast<uint8_t*>(pool.base_address), pool.size_bytes);
  }
};

}  // namespace

std::unique_ptr<Transport> NewLoopbackTransport() { return std::make_unique<LoopbackTransport>(); }

}  // namespace tandem
