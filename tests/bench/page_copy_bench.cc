// Pages pushed from one GPU's pool into another's (or its own, with one GPU), against the copy engine's rate for one
// message of 512 MiB in the same run. Verifies each workload's bytes. Prints a line of JSON per figure.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/clock.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/nvlink/page_copier.h"

namespace tandem {
namespace {

constexpr uint64_t kPoolBytes = uint64_t{1} << 30;
constexpr int kWarmUp = 3, kRounds = 20;

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  exit(1);
}
template <typename T>
T OrExit(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  fprintf(stderr, "%s\n", result.status().ToString().c_str());
  exit(1);
}
void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.ToString().c_str());
  exit(1);
}

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

struct Workload {
  const char* name;
  int64_t page_bytes;
  int pages;
};
constexpr Workload kWorkloads[] = {{"latent, 64 tokens of 61 layers", 73'728, 3'904},
                                   {"32 KiB", 32'768, 32'768},
                                   {"4 KiB", 4'096, 70'000},
                                   {"latent, one token", 1'152, 249'856},
                                   {"long runs", 4'718'592, 64}};

class Bench {
 public:
  Bench() : driver_(OrExit(NewCudaDriver())) {
    int devices = 0, peers = 0;
    Check(cudaGetDeviceCount(&devices));
    if (devices > 1) Check(cudaDeviceCanAccessPeer(&peers, 0, 1));
    const int destination_device = peers == 1 ? 1 : 0;
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, 0));
    printf("{\"device\": \"%s\", \"destination\": \"%s\"}\n", properties.name,
           destination_device == 1 ? "another GPU" : "the same GPU");
    source_ = OrExit(GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    destination_ = OrExit(GpuPool::Create(*driver_, destination_device, kPoolBytes, PoolReach::kHost));
    const ShareableHandle handle = OrExit(destination_->Export());
    imported_ = OrExit(ImportedPool::Import(*driver_, handle, destination_->bytes(), 0));
    close(handle.fd);
    Check(cudaSetDevice(0));
    int least = 0, greatest = 0;
    Check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    Check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    Check(cudaHostAlloc(reinterpret_cast<void**>(&flag_), sizeof(uint32_t), cudaHostAllocMapped));
    *flag_ = 0;
    Check(cudaEventCreate(&begin_));
    Check(cudaEventCreate(&end_));
    bytes_.resize(kPoolBytes);
    std::mt19937_64 random(std::random_device{}());
    for (size_t i = 0; i < bytes_.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&bytes_[i], &word, 8);
    }
    Check(cudaMemcpy(source_->base(), bytes_.data(), kPoolBytes, cudaMemcpyDefault));
  }

  // GB/s of the copy engine for one message.
  double MeasureCopyEngine() {
    constexpr size_t kBytes = size_t{512} << 20;
    const double rate = MeasureRate(kBytes, [&] {
      Check(cudaMemcpyAsync(imported_->base(), source_->base(), kBytes, cudaMemcpyDefault, stream_));
    });
    printf("{\"method\": \"copy engine\", \"message_bytes\": %zu, \"GB/s\": %.1f}\n", kBytes, rate);
    return rate;
  }

  void MeasureWorkload(const Workload& workload, int blocks, double reference) {
    const std::unique_ptr<PageCopier> copier = OrExit(PageCopier::Create({.blocks = blocks}));
    const std::vector<CopyRun> runs = Shuffle(workload);
    const double bytes = static_cast<double>(workload.page_bytes) * static_cast<double>(runs.size());
    const bool is_right = Verify(*copier, runs);
    std::vector<double> uploads;
    for (int round = 0; round < kRounds; ++round) {
      const absl::Time begin = Clock::Real().Now();
      const PageCopier::List list = OrExit(copier->Upload(runs, stream_));
      Check(cudaStreamSynchronize(stream_));
      uploads.push_back(absl::ToDoubleMicroseconds(Clock::Real().Now() - begin));
    }
    const PageCopier::List list = OrExit(copier->Upload(runs, stream_));
    const double rate = MeasureRate(bytes, [&] { OrExit(copier->Enqueue(list, MakePush(0, nullptr))); });
    printf(
        "{\"method\": \"kernel\", \"pages\": %zu, \"page_bytes\": %lld, \"blocks\": %d, \"GB/s\": %.1f, "
        "\"of_copy_engine\": %.3f, \"list_upload_us\": %.1f, \"verified\": %s}\n",
        runs.size(), static_cast<long long>(workload.page_bytes), blocks, rate, rate / reference,
        Percentile(uploads, 0.5), is_right ? "true" : "false");
    fflush(stdout);
    if (!is_right) exit(1);
  }

  // From the call, list and all, until this thread sees the flag.
  void MeasureLatency(int64_t page_bytes, int pages, int blocks) {
    const std::unique_ptr<PageCopier> copier = OrExit(PageCopier::Create({.blocks = blocks}));
    const std::vector<CopyRun> runs = Shuffle({"", page_bytes, pages});
    std::vector<double> times;
    for (uint32_t round = 1; round <= 220; ++round) {
      const absl::Time begin = Clock::Real().Now();
      const PageCopier::List list = OrExit(copier->Upload(runs, stream_));
      OrExit(copier->Enqueue(list, MakePush(++flag_value_, flag_)));
      const absl::Time deadline = begin + absl::Seconds(5);
      while (__atomic_load_n(flag_, __ATOMIC_ACQUIRE) != flag_value_) {
        if (Clock::Real().Now() > deadline) OrExit(absl::DeadlineExceededError("no flag after 5 s"));
      }
      if (round > 20) times.push_back(absl::ToDoubleMicroseconds(Clock::Real().Now() - begin));
    }
    printf(
        "{\"latency\": \"call to flag in host memory\", \"pages\": %d, \"page_bytes\": %lld, \"blocks\": %d, "
        "\"p50_us\": %.1f, \"p90_us\": %.1f}\n",
        pages, static_cast<long long>(page_bytes), blocks, Percentile(times, 0.5), Percentile(times, 0.9));
  }

 private:
  PageCopier::Push MakePush(uint32_t value, uint32_t* flag) const {
    return {{source_->base(), source_->bytes()}, {imported_->base(), imported_->bytes()}, flag, value};
  }

  template <typename F>
  double MeasureRate(double bytes, F enqueue) {
    std::vector<double> rates;
    for (int round = 0; round < kWarmUp + kRounds; ++round) {
      Check(cudaEventRecord(begin_, stream_));
      enqueue();
      Check(cudaEventRecord(end_, stream_));
      Check(cudaEventSynchronize(end_));
      float milliseconds = 0;
      Check(cudaEventElapsedTime(&milliseconds, begin_, end_));
      if (round >= kWarmUp) rates.push_back(bytes / milliseconds / 1e6);
    }
    return Percentile(rates, 0.5);
  }

  static std::vector<CopyRun> Shuffle(const Workload& workload) {
    std::mt19937_64 random(11);
    std::vector<int64_t> from(kPoolBytes / workload.page_bytes), to(from.size());
    std::iota(from.begin(), from.end(), 0);
    std::iota(to.begin(), to.end(), 0);
    std::shuffle(from.begin(), from.end(), random);
    std::shuffle(to.begin(), to.end(), random);
    std::vector<CopyRun> runs;
    for (int i = 0; i < workload.pages && i < static_cast<int>(from.size()); ++i) {
      runs.push_back({from[i] * workload.page_bytes, to[i] * workload.page_bytes, workload.page_bytes});
    }
    return runs;
  }

  bool Verify(PageCopier& copier, const std::vector<CopyRun>& runs) {
    constexpr uint8_t kPoison = 0xA5;
    Check(cudaMemset(imported_->base(), kPoison, kPoolBytes));
    Check(cudaDeviceSynchronize());
    const PageCopier::List list = OrExit(copier.Upload(runs, stream_));
    OrExit(copier.Enqueue(list, MakePush(0, nullptr)));
    Check(cudaStreamSynchronize(stream_));
    std::vector<uint8_t> wanted(kPoolBytes, kPoison), got(kPoolBytes);
    for (const CopyRun& run : runs) std::memcpy(&wanted[run.destination], &bytes_[run.source], run.bytes);
    Check(cudaMemcpy(got.data(), imported_->base(), kPoolBytes, cudaMemcpyDefault));
    return wanted == got;
  }

  const std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<GpuPool> source_, destination_;
  std::unique_ptr<ImportedPool> imported_;
  std::vector<uint8_t> bytes_;  // Of the source.
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  uint32_t* flag_ = nullptr;
  uint32_t flag_value_ = 0;
};

}  // namespace
}  // namespace tandem

int main() {
  tandem::Bench bench;
  const double reference = bench.MeasureCopyEngine();
  for (const tandem::Workload& workload : tandem::kWorkloads) {
    printf("# %s\n", workload.name);
    for (int blocks : {4, 8, 16, 24, 32, 64}) bench.MeasureWorkload(workload, blocks, reference);
  }
  for (int blocks : {8, 16, 32}) bench.MeasureLatency(73'728, 122, blocks);
  bench.MeasureLatency(73'728, 1, 16);
  bench.MeasureLatency(1'152, 8, 16);
}
