// Whoever sees a push's flag sees its bytes: a kernel of the destination reads them in the moment in which the flag
// comes. Both directions at once; sizes, page order and method are drawn for each transfer.
// TANDEM_VISIBILITY_TRANSFERS: how many, of both directions together.

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/current_device.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/nvlink/page_pusher.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/gpu/page_pattern.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

constexpr uint64_t kCellBytes = 16 << 10;
constexpr uint64_t kAreaBytes = kMaxWatchedRuns * kCellBytes;  // Of one transfer: enough work for 64 blocks.
constexpr uint64_t kFlagOffset = 2 * kAreaBytes;               // Transfers use the two areas in turn.
constexpr uint64_t kPatienceNs = 20'000'000'000;

// Host memory that the GPUs map.
template <typename T>
absl::StatusOr<T*> MapHost(size_t count) {
  T* memory = nullptr;
  RETURN_IF_ERROR(CudaStatus(
      cudaHostAlloc(reinterpret_cast<void**>(&memory), count * sizeof(T), cudaHostAllocMapped | cudaHostAllocPortable),
      "cudaHostAlloc"));
  std::fill_n(reinterpret_cast<uint8_t*>(memory), count * sizeof(T), 0);
  return memory;
}

// Transfers from one device's pool into another's.
class Direction {
 public:
  absl::Status Prepare(GpuDriver& driver, int from, int to, uint64_t seed) {
    from_ = from;
    to_ = to;
    random_.seed(seed);
    ASSIGN_OR_RETURN(source_, GpuPool::Create(driver, from, kFlagOffset, PoolReach::kHost));
    ASSIGN_OR_RETURN(destination_, GpuPool::Create(driver, to, kFlagOffset + 4096, PoolReach::kHost));
    ASSIGN_OR_RETURN(const ShareableHandle handle, destination_->Export());
    ASSIGN_OR_RETURN(imported_, ImportedPool::Import(driver, handle, destination_->bytes(), from));
    close(handle.fd);
    ASSIGN_OR_RETURN(std::shared_ptr<PageCopier> copier, PageCopier::Create({.device = from, .max_runs = 1024}));
    ASSIGN_OR_RETURN(pusher_, PagePusher::Create({.device = from}, std::move(copier)));
    ASSIGN_OR_RETURN(expected_, MapHost<WatchedTransfer>(1));
    ASSIGN_OR_RETURN(results_, MapHost<Results>(1));
    const CurrentDevice current(to);
    RETURN_IF_ERROR(CudaStatus(cudaMemset(destination_->base(), 0, destination_->bytes()), "cudaMemset"));
    RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&watch_stream_, cudaStreamNonBlocking), "stream"));
    return CudaStatus(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  ~Direction() {
    pusher_.reset();
    if (watch_stream_ != nullptr) cudaStreamDestroy(watch_stream_);
    cudaFreeHost(expected_);
    cudaFreeHost(results_);
  }

  absl::Status BeginWatch(uint32_t count) {
    const CurrentDevice current(to_);
    return CudaStatus(WatchTransfers({.memory = destination_->base(),
                                      .flag = reinterpret_cast<const uint32_t*>(destination_->base() + kFlagOffset),
                                      .expected = expected_,
                                      .announced = &results_->announced,
                                      .ready = &results_->ready,
                                      .last = count,
                                      .patience_ns = kPatienceNs,
                                      .seen = &results_->seen,
                                      .wrong = &results_->wrong,
                                      .fresh = &results_->fresh,
                                      .gave_up = &results_->gave_up},
                                     watch_stream_),
                      "watch");
  }

  absl::Status TransferAll(uint32_t count) {
    const CurrentDevice current(from_);
    RETURN_IF_ERROR(current.status());
    for (uint32_t transfer = 1; transfer <= count; ++transfer) {
      RETURN_IF_ERROR(Transfer(transfer));
      RETURN_IF_ERROR(Await(results_->seen, transfer));
    }
    return absl::OkStatus();
  }

  unsigned long long wrong() const { return results_->wrong; }
  // Transfers whose flag was awaited before it came.
  unsigned long long fresh() const { return results_->fresh; }
  // Pushes by kernel on more than one block.
  int64_t of_many_blocks() const { return of_many_blocks_; }
  int64_t of_method(CopyMethod method) const { return by_method_[static_cast<int>(method)]; }

 private:
  struct Results {
    volatile uint32_t announced, ready, seen;
    unsigned long long wrong, fresh;
    uint32_t gave_up;
  };

  absl::Status Await(const volatile uint32_t& word, uint32_t transfer) const {
    const absl::Time deadline = Clock::Real().Now() + absl::Nanoseconds(2 * kPatienceNs);
    while (word < transfer) {
      if (Clock::Real().Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat("transfer ", transfer, " was not seen; last ", results_->seen,
                                                        ", gave up at ", results_->gave_up));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Transfer(uint32_t transfer) {
    const uint64_t base = transfer % 2 * kAreaBytes;
    WatchedTransfer& expected = *expected_;
    expected.seed = random_();
    // Mostly short; one in eight moves a megabyte and more. Different orders at both ends.
    const bool is_long = random_() % 8 == 0;
    const uint64_t largest = is_long ? kCellBytes : 1024;
    expected.num_runs = is_long ? kMaxWatchedRuns - random_() % 64 : 1 + random_() % 64;
    std::vector<uint64_t> from(kMaxWatchedRuns), to(kMaxWatchedRuns);
    std::iota(from.begin(), from.end(), 0);
    std::iota(to.begin(), to.end(), 0);
    std::shuffle(from.begin(), from.end(), random_);
    std::shuffle(to.begin(), to.end(), random_);
    auto draw_bytes = [&] { return 16 + random_() % (largest / 16) * 16; };
    const uint64_t alike = random_() % 2 == 0 ? draw_bytes() : 0;
    std::vector<CopyRun> runs;
    for (uint32_t i = 0; i < expected.num_runs; ++i) {
      const uint64_t bytes = alike > 0 ? alike : draw_bytes();
      expected.runs[i] = {base + from[i] * kCellBytes, base + to[i] * kCellBytes, bytes};
      runs.push_back({static_cast<int64_t>(expected.runs[i].source), static_cast<int64_t>(expected.runs[i].destination),
                      static_cast<int64_t>(bytes)});
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    results_->announced = transfer;
    RETURN_IF_ERROR(CudaStatus(
        FillPattern(source_->base() + base, kAreaBytes, expected.seed, base / 16, pusher_->stream()), "fill"));
    RETURN_IF_ERROR(Await(results_->ready, transfer));
    const CopyChoice choice = {random_() % 4 == 0 ? CopyMethod::kCopyEngine : CopyMethod::kKernel,
                               1 << (random_() % 7)};
    ++by_method_[static_cast<int>(choice.method)];
    if (choice.method == CopyMethod::kKernel && choice.blocks > 1 && is_long) ++of_many_blocks_;
    return pusher_
        ->Push(runs,
               {.source = {source_->base(), source_->bytes()},
                .destination = {imported_->base(), imported_->bytes()},
                .flag = reinterpret_cast<uint32_t*>(imported_->base() + kFlagOffset),
                .flag_value = transfer},
               choice)
        .status();
  }

  int from_ = 0, to_ = 0;
  std::mt19937_64 random_;
  std::unique_ptr<GpuPool> source_, destination_;
  std::unique_ptr<ImportedPool> imported_;
  std::unique_ptr<PagePusher> pusher_;
  WatchedTransfer* expected_ = nullptr;
  Results* results_ = nullptr;
  cudaStream_t watch_stream_ = nullptr;
  int64_t by_method_[2] = {}, of_many_blocks_ = 0;
};

// A module that is loaded while the watching kernels run would wait for their end; CUDA reads this at its start.
const int kEager = setenv("CUDA_MODULE_LOADING", "EAGER", 1);

TEST(VisibilityTest, WhoSeesTheFlagSeesTheBytes) {
  TANDEM_NEEDS_GPU(gpus);
  int64_t wanted = 20'000;
  if (const char* setting = std::getenv("TANDEM_VISIBILITY_TRANSFERS"); setting != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(setting, &wanted)) << "TANDEM_VISIBILITY_TRANSFERS: " << setting;
  }
  const auto count = static_cast<uint32_t>(wanted / 2);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<GpuDriver> driver, NewCudaDriver());
  const uint64_t seed = std::random_device{}();
  Direction there, back;
  ASSERT_THAT(there.Prepare(*driver, 0, gpus.peer_device, seed), IsOk());
  ASSERT_THAT(back.Prepare(*driver, gpus.peer_device, 0, ~seed), IsOk());
  ASSERT_THAT(there.BeginWatch(count), IsOk());
  ASSERT_THAT(back.BeginWatch(count), IsOk());
  absl::Status status_there, status_back;
  std::thread other([&] { status_back = back.TransferAll(count); });
  status_there = there.TransferAll(count);
  other.join();
  EXPECT_THAT(status_there, IsOk());
  EXPECT_THAT(status_back, IsOk());
  EXPECT_EQ(there.wrong(), 0) << "seed " << seed;
  EXPECT_EQ(back.wrong(), 0) << "seed " << seed;
  // Only what is awaited is read in the moment in which it comes.
  EXPECT_EQ(kEager, 0);
  EXPECT_GE(there.fresh() + back.fresh(), 2 * count * 9 / 10);
  for (CopyMethod method : {CopyMethod::kKernel, CopyMethod::kCopyEngine}) {
    RecordProperty(std::string(CopyMethodName(method)),
                   std::to_string(there.of_method(method) + back.of_method(method)));
  }
  printf(
      "%lld transfers between devices 0 and %d: %lld by kernel (%lld on many blocks), %lld by copy engine, "
      "%llu flags awaited, seed %llu\n",
      static_cast<long long>(2 * count), gpus.peer_device,
      static_cast<long long>(there.of_method(CopyMethod::kKernel) + back.of_method(CopyMethod::kKernel)),
      static_cast<long long>(there.of_many_blocks() + back.of_many_blocks()),
      static_cast<long long>(there.of_method(CopyMethod::kCopyEngine) + back.of_method(CopyMethod::kCopyEngine)),
      there.fresh() + back.fresh(), static_cast<unsigned long long>(seed));
}

}  // namespace
}  // namespace tandem
