#include "kvtransfer/nvlink/gpu_pool.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/units.h"

namespace tandem {
namespace {

absl::Status Explain(const absl::Status& status, int device, uint64_t bytes, PoolReach reach) {
  if (reach == PoolReach::kFabric && (absl::IsPermissionDenied(status) || absl::IsUnimplemented(status))) {
    return absl::FailedPreconditionError(absl::StrCat(
        "GPU ", device, " cannot share memory across hosts: ", status.message(),
        "; it needs an IMEX channel (nvidia-imex running, /dev/nvidia-caps-imex-channels/channel0 readable "
        "for this user), or a topology whose links stay on one host"));
  }
  return absl::Status(status.code(), absl::StrCat("KV pool of ", FormatBytes(static_cast<int64_t>(bytes)), " on GPU ",
                                                  device, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuPool>> GpuPool::Create(GpuDriver& driver, int device, uint64_t bytes,
                                                         PoolReach reach) {
  auto explained = [&](const absl::Status& status) { return Explain(status, device, bytes, reach); };
  absl::StatusOr<uint64_t> granularity = driver.Granularity(device, reach);
  if (!granularity.ok()) return explained(granularity.status());
  const uint64_t rounded = (bytes + *granularity - 1) / *granularity * *granularity;
  absl::StatusOr<GpuDriver::Allocation> allocation = driver.Create(device, rounded, reach);
  if (!allocation.ok()) return explained(allocation.status());
  absl::StatusOr<uint8_t*> base = driver.Map(*allocation, rounded, device);
  if (!base.ok()) {
    driver.Release(*allocation);
    return explained(base.status());
  }
  return std::unique_ptr<GpuPool>(new GpuPool(driver, device, reach, *allocation, *base, rounded));
}

GpuPool::~GpuPool() {
  driver_.Unmap(base_, bytes_);
  driver_.Release(allocation_);
}

absl::StatusOr<std::unique_ptr<ImportedPool>> ImportedPool::Import(GpuDriver& driver, const ShareableHandle& handle,
                                                                   uint64_t bytes, int device) {
  ASSIGN_OR_RETURN(GpuDriver::Allocation allocation, driver.Import(handle));
  absl::StatusOr<uint8_t*> base = driver.Map(allocation, bytes, device);
  if (!base.ok()) {
    driver.Release(allocation);
    return base.status();
  }
  return std::unique_ptr<ImportedPool>(new ImportedPool(driver, allocation, *base, bytes));
}

ImportedPool::~ImportedPool() {
  driver_.Unmap(base_, bytes_);
  driver_.Release(allocation_);
}

absl::StatusOr<std::shared_ptr<const ImportedPool>> ImportCache::Acquire(Incarnation peer, int region,
                                                                         const ShareableHandle& handle,
                                                                         uint64_t bytes) {
  auto explained = [&](absl::StatusCode code, absl::string_view cause) {
    return absl::Status(code, absl::StrCat("pool ", region, " of peer ", peer.value(), ", ", bytes, " bytes: ", cause));
  };
  absl::erase_if(pools_, [](const auto& entry) { return entry.second.expired(); });
  if (auto entry = pools_.find({peer, region}); entry != pools_.end()) {
    std::shared_ptr<const ImportedPool> known = entry->second.lock();
    if (known->bytes() == bytes) return known;
    return explained(absl::StatusCode::kInvalidArgument,
                     absl::StrCat("it is mapped already with ", known->bytes(), " bytes"));
  }
  absl::StatusOr<std::unique_ptr<ImportedPool>> imported = ImportedPool::Import(driver_, handle, bytes, device_);
  if (!imported.ok()) return explained(imported.status().code(), imported.status().message());
  std::shared_ptr<const ImportedPool> pool = *std::move(imported);
  pools_[{peer, region}] = pool;
  return pool;
}

}  // namespace tandem
