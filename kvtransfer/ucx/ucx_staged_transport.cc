#include "kvtransfer/ucx/ucx_staged_transport.h"

#include <cstring>
#include <utility>

#include "common/status_macros.h"
#include "kvtransfer/ucx/staged_export.h"
#include "kvtransfer/ucx/staged_pool.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace tandem {
namespace {

class UcxStagedTransport final : public UcxTransportBase {
 public:
  UcxStagedTransport(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options)
      : UcxTransportBase(std::move(context)), options_(options) {}
  absl::string_view name() const override {
    return options_.memory->is_device() && options_.place == PoolMemory::Place::kHost ? "ucx_host_staged"
                                                                                      : "ucx_staged";
  }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    auto pool = std::make_unique<StagedExport>(context_, options_, base, size_bytes);
    RETURN_IF_ERROR(pool->Start(name()));
    return pool;
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    StagedLimits limits;
    if (pool.remote_key.size() != sizeof(limits)) {
      return absl::UnavailableError("the peer's description of its pool is not understood");
    }
    std::memcpy(&limits, pool.remote_key.data(), sizeof(limits));
    if (limits.buffers == 0 || limits.chunk_bytes < 16) return absl::UnavailableError("the peer has no buffers");
    auto remote = std::make_unique<StagedPool>(context_, options_, pool, limits);
    RETURN_IF_ERROR(remote->Start(pool.address));
    return remote;
  }

 private:
  const UcxStagedOptions options_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> NewUcxStagedTransport(const UcxStagedOptions& options) {
  const bool on_device = options.memory->is_device() && options.place == PoolMemory::Place::kPool;
  ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Create(on_device));
  return std::unique_ptr<Transport>(std::make_unique<UcxStagedTransport>(std::move(context), options));
}

}  // namespace tandem
