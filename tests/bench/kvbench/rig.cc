#include "tests/bench/kvbench/rig.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "tests/gpu/pool_check.h"

namespace tandem {

void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  fflush(stdout);
  fprintf(stderr, "kvbench: %s\n", status.ToString().c_str());
  std::_Exit(1);  // Other threads use the GPU still.
}
void Check(cudaError_t error) { OrExit(CudaStatus(error, "CUDA")); }

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

std::string ChoiceName(const std::optional<CopyChoice>& choice) {
  if (!choice.has_value()) return "rule";
  if (choice->method == CopyMethod::kCopyEngine) return "copy engine";
  return absl::StrCat("kernel, ", choice->blocks, " blocks");
}

Rig::Rig(bool peer_hides) {
  int devices = 0, reach = 0;
  Check(cudaGetDeviceCount(&devices));
  if (devices > 1) Check(cudaDeviceCanAccessPeer(&reach, 0, 1));
  peer_device = reach;
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0));
  printf("{\"device\": \"%s\", \"peer\": \"%s\", \"peer_sees_own_gpu_only\": %s}\n", properties.name,
         reach == 1 ? "another GPU" : "the same GPU", peer_hides ? "true" : "false");
  Check(cudaSetDevice(0));
  driver = OrExit(NewCudaDriver());
  memory = OrExit(NewCudaMemory(0));
  pool = OrExit(GpuPool::Create(*driver, 0, kPoolBytes, PoolReach::kHost));
  transport = OrExit(NvlinkTransport::Create(
      *driver, {.device = 0, .pool = pool.get(), .source_is_computing = [this] { return gemm != nullptr; }}));
  exported = OrExit(transport->Export(pool->base(), pool->bytes()));
  peer = StartPeer(peer_hides);
  remote = OrExit(transport->OpenPool(peer->pool()));
  Check(cudaHostRegister(&peer->words(), sizeof(SharedWords), cudaHostRegisterMapped));
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  OrExit(FillPool(*pool, kContentSeed));
  MeasureReference();
}

std::unique_ptr<GpuPeer> Rig::StartPeer(bool hides) const {
  return OrExit(GpuPeer::Start({.device = peer_device, .pool_bytes = kPoolBytes, .sees_own_device_only = hides}));
}

void Rig::MeasureReference() {
  constexpr size_t kBytes = size_t{512} << 20;
  reference = MeasureRate(
      kBytes, [&] { Check(cudaMemcpyAsync(remote->base(), pool->base(), kBytes, cudaMemcpyDefault, stream())); });
  printf("{\"method\": \"copy engine\", \"message_bytes\": %zu, \"GB/s\": %.1f}\n", kBytes, reference);
}

double Rig::MeasureRate(double bytes, const std::function<void()>& enqueue) {
  std::vector<double> rates;
  for (int round = 0; round < kWarmUp + kRounds; ++round) {
    Check(cudaEventRecord(begin, stream()));
    enqueue();
    Check(cudaEventRecord(end, stream()));
    Check(cudaEventSynchronize(end));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (round >= kWarmUp) rates.push_back(bytes / milliseconds / 1e6);
  }
  return Percentile(rates, 0.5);
}

void Rig::Push(absl::Span<const CopyRun> runs, const std::optional<CopyChoice>& choice, uint32_t* flag,
               uint32_t value) {
  OrExit(remote->Push(pool->base(), runs, flag, value, choice).status());
}

double Rig::MeasureSequence(double bytes, const std::function<absl::StatusOr<CopyChoice>()>& push) {
  std::vector<double> rates;
  for (int round = 0; round < 3; ++round) {
    Check(cudaStreamSynchronize(stream()));
    const int64_t start = MonotonicNanoseconds();
    for (int i = 0; i < kRounds; ++i) {
      absl::StatusOr<CopyChoice> pushed = push();
      while (absl::IsUnavailable(pushed.status())) pushed = push();
      OrExit(pushed.status());
    }
    Check(cudaStreamSynchronize(stream()));
    rates.push_back(kRounds * bytes / static_cast<double>(MonotonicNanoseconds() - start));
  }
  return Percentile(rates, 0.5);
}

Rig::Times Rig::TimeEach(const std::function<void(uint32_t value)>& begin_transfer) {
  SharedWords& words = peer->words();
  Times times;
  for (int round = 0; round < kLatencyRounds; ++round) {
    const uint32_t value = ++last_flag;
    const int64_t start = MonotonicNanoseconds();
    begin_transfer(value);
    const int64_t returned = MonotonicNanoseconds();
    while (words.seen.load(std::memory_order_acquire) != value) {
      if (MonotonicNanoseconds() - start > kPatienceNs) OrExit(absl::DeadlineExceededError("no flag"));
    }
    if (round < kLatencyRounds / 10) continue;
    times.seen.push_back(static_cast<double>(words.seen_at_ns[value % 4096] - start) / 1e3);
    times.posted.push_back(static_cast<double>(returned - start) / 1e3);
  }
  OrExit(peer->Await());
  return times;
}

}  // namespace tandem
