#include "kvtransfer/worker_pool.h"

#include <utility>

#include "common/status_macros.h"
#include "kvtransfer/shm/shm_transport.h"
#include "kvtransfer/transport_factory.h"
#if TANDEM_WITH_CUDA
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/nvlink/gpu_transports.h"
#endif

namespace tandem {
namespace {

class HostWorkerPool final : public WorkerPool {
 public:
  explicit HostWorkerPool(std::unique_ptr<ShmPool> pool) : pool_(std::move(pool)) {}
  uint8_t* base() const override { return pool_->base(); }
  PoolMemory& memory() const override { return HostMemory(); }
  absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(
      const std::vector<std::string>& names) override {
    return tandem::MakeTransports(names, pool_.get());
  }

 private:
  const std::unique_ptr<ShmPool> pool_;
};

#if TANDEM_WITH_CUDA
class GpuWorkerPool final : public WorkerPool {
 public:
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Create(Options options) {
    auto self = std::make_unique<GpuWorkerPool>();
    self->gpu_is_computing_ = std::move(options.gpu_is_computing);
    ASSIGN_OR_RETURN(self->driver_, NewCudaDriver());
    ASSIGN_OR_RETURN(self->memory_, NewCudaMemory(*options.gpu));
    ASSIGN_OR_RETURN(self->pool_, GpuPool::Create(*self->driver_, *options.gpu, options.bytes, PoolReach::kHost));
    return std::unique_ptr<WorkerPool>(std::move(self));
  }
  uint8_t* base() const override { return pool_->base(); }
  PoolMemory& memory() const override { return *memory_; }
  absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(
      const std::vector<std::string>& names) override {
    return MakeGpuTransports(names, {driver_.get(), memory_.get(), pool_.get(), gpu_is_computing_});
  }

 private:
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::function<bool()> gpu_is_computing_;
};
#endif

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Create(Options options) {
  if (options.gpu.has_value()) {
#if TANDEM_WITH_CUDA
    return GpuWorkerPool::Create(std::move(options));
#else
    return absl::UnimplementedError("this build has no code for GPUs");
#endif
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ShmPool> pool, ShmPool::Create(options.bytes));
  return std::unique_ptr<WorkerPool>(std::make_unique<HostWorkerPool>(std::move(pool)));
}

}  // namespace tandem
