#include "kvtransfer/nvlink/nvlink_transport.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/descriptor_server.h"
#include "kvtransfer/self_test.h"

namespace tandem {
namespace {

constexpr absl::Duration kFetchPatience = absl::Milliseconds(200);
constexpr size_t kUuidBytes = 16;

// PoolExport::remote_key: the device's UUID, then the fabric handle, if there is one. PoolExport::base_address: a
// number that no other pool has.
absl::StatusOr<std::string> DeviceUuid(int device) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
  return std::string(properties.uuid.bytes, kUuidBytes);
}

absl::StatusOr<bool> SeesDevice(absl::string_view uuid) {
  int devices = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&devices), "cudaGetDeviceCount"));
  for (int device = 0; device < devices; ++device) {
    ASSIGN_OR_RETURN(const std::string candidate, DeviceUuid(device));
    if (candidate == uuid) return true;
  }
  return false;
}

// More go in several pushes.
constexpr size_t kMaxRunsOfPush = 1 << 18;
constexpr int kMaxLists = 4;  // 7 MiB each, on the device and on the host.

class MappedNvlinkPool final : public NvlinkPool {
 public:
  // `own_pool`: null where this process has none. `all`: where this pool is found while it lives.
  MappedNvlinkPool(std::shared_ptr<const ImportedPool> pool, uint64_t size_bytes, bool sees_device,
                   const GpuPool* own_pool, std::unique_ptr<PagePusher> pusher,
                   absl::flat_hash_set<MappedNvlinkPool*>& all)
      : pool_(std::move(pool)),
        size_bytes_(size_bytes),
        sees_device_(sees_device),
        own_pool_(own_pool),
        all_(all),
        pusher_(std::move(pusher)) {
    all_.insert(this);
  }
  ~MappedNvlinkPool() override { all_.erase(this); }

  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    for (size_t first = 0; first < order.runs.size(); first += kMaxRunsOfPush) {
      const size_t end = std::min(order.runs.size(), first + kMaxRunsOfPush);
      WriteOrder part{.source_base = order.source_base, .sums = order.sums};
      part.runs.assign(order.runs.begin() + first, order.runs.begin() + end);
      if (part.sums != nullptr) {
        part.page_of_run.assign(order.page_of_run.begin() + first, order.page_of_run.begin() + end);
      }
      waiting_.push_back(std::move(part));
    }
    PushWaiting();
    return failure_;
  }

  absl::StatusOr<bool> PollFlushed() override {
    PushWaiting();
    RETURN_IF_ERROR(failure_);
    ASSIGN_OR_RETURN(const bool ended, pusher_->PollEnded());
    return ended && waiting_.empty();
  }

  absl::StatusOr<CopyChoice> Push(const uint8_t* source_base, absl::Span<const CopyRun> runs, uint32_t* flag,
                                  uint32_t flag_value, std::optional<CopyChoice> forced,
                                  PagePusher::SumsWanted sums) override {
    // Another source is that of a self-test, which is as long as what it writes.
    const bool is_own = own_pool_ != nullptr && source_base == own_pool_->base();
    return pusher_->Push(runs,
                         {.source = {source_base, is_own ? own_pool_->bytes() : kTestAreaBytes},
                          .destination = {pool_->base(), size_bytes_},
                          .flag = flag,
                          .flag_value = flag_value},
                         forced, std::move(sums));
  }
  uint8_t* base() const override { return pool_->base(); }
  PagePusher& pusher() override { return *pusher_; }
  bool sees_device() const override { return sees_device_; }

  // Pushes what waits, in order, until the lists are all in use; what fails is told by the next Write or PollFlushed.
  void PushWaiting() {
    if (failure_.ok()) failure_ = pusher_->CollectSums();
    while (failure_.ok() && !waiting_.empty()) {
      WriteOrder& order = waiting_.front();
      absl::Status status = PushOne(order);
      if (absl::IsUnavailable(status)) return;
      failure_ = status;
      waiting_.pop_front();
    }
  }
  bool has_waiting() const { return !waiting_.empty(); }

 private:
  // UNAVAILABLE: not now.
  absl::Status PushOne(WriteOrder& order) {
    return Push(order.source_base, order.runs, nullptr, 0, std::nullopt, {order.sums, order.page_of_run}).status();
  }

  const std::shared_ptr<const ImportedPool> pool_;
  const uint64_t size_bytes_;
  const bool sees_device_;
  const GpuPool* const own_pool_;
  absl::flat_hash_set<MappedNvlinkPool*>& all_;
  std::deque<WriteOrder> waiting_;
  absl::Status failure_;
  const std::unique_ptr<PagePusher> pusher_;  // Goes first: it waits for the copies into the mapping.
};

class NvlinkTransportParts final : public NvlinkTransport {
 public:
  NvlinkTransportParts(GpuDriver& driver, Options options, std::string uuid, std::shared_ptr<PageCopier> copier)
      : options_(std::move(options)),
        uuid_(std::move(uuid)),
        copier_(std::move(copier)),
        imports_(driver, options_.device) {}
  absl::string_view name() const override { return "nvlink"; }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    const GpuPool* pool = options_.pool;
    if (pool == nullptr || base != pool->base() || size_bytes > pool->bytes()) {
      return absl::FailedPreconditionError("the pool is no GPU memory that can be shared");
    }
    PoolExport description{
        .transport = "nvlink", .remote_key = uuid_, .base_address = region_, .size_bytes = pool->bytes()};
    if (pool->reach() == PoolReach::kFabric) {
      ASSIGN_OR_RETURN(const ShareableHandle handle, pool->Export());
      description.remote_key += handle.fabric;
    } else {
      if (server_ == nullptr) {
        ASSIGN_OR_RETURN(const ShareableHandle handle, pool->Export());
        const absl::Cleanup close_handle = [&] { close(handle.fd); };
        ASSIGN_OR_RETURN(server_, DescriptorServer::Start(handle.fd));
      }
      description.address = server_->address();
    }
    return std::make_unique<MappedExport>(std::move(description));
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override { return OpenPool(pool); }

  absl::StatusOr<std::unique_ptr<NvlinkPool>> OpenPool(const PoolExport& pool) override {
    if (pool.remote_key.size() < kUuidBytes || pool.size_bytes == 0) {
      return absl::UnavailableError("the peer's description of its pool is not understood");
    }
    ShareableHandle handle;
    if (pool.remote_key.size() > kUuidBytes) {
      handle = {.reach = PoolReach::kFabric, .fabric = pool.remote_key.substr(kUuidBytes)};
    } else {
      ASSIGN_OR_RETURN(handle.fd, FetchDescriptor(pool.address, kFetchPatience));
    }
    const absl::Cleanup close_handle = [&] {
      if (handle.fd >= 0) close(handle.fd);
    };
    absl::StatusOr<std::shared_ptr<const ImportedPool>> imported =
        imports_.Acquire(Incarnation(pool.base_address), 0, handle, pool.size_bytes);
    if (!imported.ok()) return absl::UnavailableError(imported.status().message());
    ASSIGN_OR_RETURN(const bool sees, SeesDevice(absl::string_view(pool.remote_key).substr(0, kUuidBytes)));
    ASSIGN_OR_RETURN(
        std::unique_ptr<PagePusher> pusher,
        PagePusher::Create(
            {.device = options_.device, .sees_destination = sees, .source_is_computing = options_.source_is_computing},
            copier_));
    return std::make_unique<MappedNvlinkPool>(*std::move(imported), pool.size_bytes, sees, options_.pool,
                                              std::move(pusher), pools_);
  }

  void Progress() override {
    for (MappedNvlinkPool* pool : pools_) pool->PushWaiting();
  }
  // Nothing tells when a list is free again.
  bool PrepareToSleep() override {
    return std::none_of(pools_.begin(), pools_.end(), [](const MappedNvlinkPool* pool) { return pool->has_waiting(); });
  }

 private:
  const Options options_;
  const std::string uuid_;
  const std::shared_ptr<PageCopier> copier_;
  absl::flat_hash_set<MappedNvlinkPool*> pools_;
  const uint64_t region_ = DrawRandomId();
  ImportCache imports_;
  std::unique_ptr<DescriptorServer> server_;  // From the first export on.
};

}  // namespace

absl::StatusOr<std::unique_ptr<NvlinkTransport>> NvlinkTransport::Create(GpuDriver& driver, Options options) {
  ASSIGN_OR_RETURN(std::string uuid, DeviceUuid(options.device));
  ASSIGN_OR_RETURN(std::unique_ptr<PageCopier> copier,
                   PageCopier::Create({.device = options.device, .max_runs = kMaxRunsOfPush, .max_lists = kMaxLists}));
  return std::make_unique<NvlinkTransportParts>(driver, std::move(options), std::move(uuid), std::move(copier));
}

}  // namespace tandem
