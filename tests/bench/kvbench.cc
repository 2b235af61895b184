// KV pages between the GPU pools of two processes, in the ways of kvtransfer/nvlink: rates, latencies, and what moving
// costs a GPU that computes.
//   kvbench [rates|latency|beside_gemm|setup|hidden ...]   all but hidden by default; each prints a line of JSON a
//   figure
//
// Rates are shares of the copy engine's for one message of 512 MiB, measured in the same run. Every set's bytes are
// verified at the peer. With one GPU, or two that do not reach each other, the peer's pool is on the same one.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/gpu_transports.h"
#include "kvtransfer/nvlink/nvlink_transport.h"
#include "kvtransfer/self_test.h"
#include "kvtransfer/transport_factory.h"
#include "tests/bench/gemm_load.h"
#include "tests/gpu/gpu_peer.h"
#include "tests/gpu/pool_check.h"

namespace tandem {
namespace {

constexpr uint64_t kPoolBytes = uint64_t{1536} << 20;
constexpr int kWarmUp = 3, kRounds = 15, kLatencyRounds = 200;
constexpr int64_t kPatienceNs = 20'000'000'000;

void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  fflush(stdout);
  fprintf(stderr, "kvbench: %s\n", status.ToString().c_str());
  std::_Exit(1);  // Other threads use the GPU still.
}
template <typename T>
T OrExit(absl::StatusOr<T> result) {
  OrExit(result.status());
  return *std::move(result);
}
void Check(cudaError_t error) { OrExit(CudaStatus(error, "CUDA")); }

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

struct NamedSet {
  const char* name;
  PageSet set;
};
constexpr NamedSet kSets[] = {{"latent, 64 tokens of 61 layers", {73'728, 3'904, 11}},
                              {"32 KiB", {32'768, 40'960, 12}},
                              {"4 KiB", {4'096, 70'000, 13}},
                              {"latent, one token a page", {1'152, 249'856, 14}},
                              {"long runs", {4'718'592, 64, 15}}};
constexpr PageSet kTokens128 = {73'728, 122, 16}, kOnePage = {73'728, 1, 17};
constexpr struct {
  const char* name;
  GemmLoad::Shape shape;
} kGemms[] = {{"4096x7168x2048", {4096, 7168, 2048}}, {"8192x8192x8192", {8192, 8192, 8192}}};

CopyChoice Kernel(int blocks) { return {CopyMethod::kKernel, blocks}; }
constexpr CopyChoice kEngine = {CopyMethod::kCopyEngine, 0};

std::string ChoiceName(const std::optional<CopyChoice>& choice) {
  if (!choice.has_value()) return "rule";
  if (choice->method == CopyMethod::kCopyEngine) return "copy engine";
  return absl::StrCat("kernel, ", choice->blocks, " blocks");
}

class Bench {
 public:
  explicit Bench(bool peer_hides = false) {
    int devices = 0, reach = 0;
    Check(cudaGetDeviceCount(&devices));
    if (devices > 1) Check(cudaDeviceCanAccessPeer(&reach, 0, 1));
    peer_device_ = reach;
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, 0));
    printf("{\"device\": \"%s\", \"peer\": \"%s\", \"peer_sees_own_gpu_only\": %s}\n", properties.name,
           reach == 1 ? "another GPU" : "the same GPU", peer_hides ? "true" : "false");
    Check(cudaSetDevice(0));
    driver_ = OrExit(NewCudaDriver());
    memory_ = OrExit(NewCudaMemory(0));
    pool_ = OrExit(GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    transport_ = OrExit(NvlinkTransport::Create(
        *driver_, {.device = 0, .pool = pool_.get(), .source_is_computing = [this] { return gemm_ != nullptr; }}));
    export_ = OrExit(transport_->Export(pool_->base(), pool_->bytes()));
    peer_ =
        OrExit(GpuPeer::Start({.device = peer_device_, .pool_bytes = kPoolBytes, .sees_own_device_only = peer_hides}));
    remote_ = OrExit(transport_->OpenPool(peer_->pool()));
    Check(cudaHostRegister(&peer_->words(), sizeof(SharedWords), cudaHostRegisterMapped));
    Check(cudaEventCreate(&begin_));
    Check(cudaEventCreate(&end_));
    OrExit(FillPool(*pool_, kSeed));
    MeasureReference();
  }

  void Rates() {
    for (const NamedSet& named : kSets) {
      for (int blocks : {4, 8, 16, 24, 32, 64}) Rate(named, Kernel(blocks));
      // Orders of 1 us each: a set of many would take minutes.
      if (named.set.pages <= 4'000) Rate(named, kEngine);
      Rate(named, std::nullopt);
    }
    BothWays(kSets[0]);
  }

  void Latencies() {
    for (const PageSet& set : {kOnePage, kTokens128}) {
      for (const auto& choice : Choices()) Latency(set, choice);
      for (int blocks : {0, 16, 32}) PullLatency(set, blocks);
    }
  }

  void BesideGemm() {
    for (const auto& gemm : kGemms) {
      absl::StatusOr<std::unique_ptr<GemmLoad>> load = GemmLoad::Start(0, gemm.shape);
      if (!load.ok()) {
        printf("{\"skipped\": \"beside a GEMM\", \"cause\": \"%s\"}\n", std::string(load.status().message()).c_str());
        return;
      }
      gemm_ = *std::move(load);
      gemm_name_ = gemm.name;
      Products(1.0);  // Warm.
      for (const auto& choice : Choices()) Latency(kTokens128, choice);
      for (int blocks : {0, 16, 32}) PullLatency(kTokens128, blocks);
      for (const std::optional<CopyChoice>& choice :
           {std::optional<CopyChoice>(Kernel(8)), std::optional<CopyChoice>(Kernel(16)),
            std::optional<CopyChoice>(Kernel(32)), std::optional<CopyChoice>(kEngine)}) {
        BusyLink(kSets[0], choice);
      }
      BusyLink(kSets[4], kEngine);
      for (int blocks : {16, 32}) PullBusyLink(kSets[0], blocks);
      PrefillPace();
      gemm_.reset();
    }
  }

  // A pool of 64 GiB, or what the device has room for.
  void Setup() {
    for (uint64_t bytes : {uint64_t{64} << 30, uint64_t{32} << 30, uint64_t{8} << 30}) {
      absl::StatusOr<std::unique_ptr<GpuPeer>> peer = GpuPeer::Start({.device = peer_device_, .pool_bytes = bytes});
      if (!peer.ok()) continue;
      const int64_t begin = MonotonicNanoseconds();
      std::unique_ptr<RemotePool> remote = OrExit(transport_->Open((*peer)->pool()));
      const int64_t opened = MonotonicNanoseconds();
      const uint64_t area = bytes - kTestAreaBytes;
      const SelfTestResult test = OrExit(WriteSelfTest(*transport_, *memory_, remote, area));
      OrExit((*peer)->VerifySelfTestArea(area, test.large_seed, test.small_seed));
      const int64_t end = MonotonicNanoseconds();
      printf(
          "{\"setup\": \"link to a pool\", \"pool_gib\": %llu, \"open_ms\": %.1f, \"with_self_test_ms\": %.1f, "
          "\"self_test_GB/s\": %.1f, \"self_test_latency_us\": %.1f}\n",
          static_cast<unsigned long long>(bytes >> 30), static_cast<double>(opened - begin) / 1e6,
          static_cast<double>(end - begin) / 1e6, test.gigabytes_per_second, test.latency_us);
      return;
    }
  }

  // By UCX's put, once for each page, and its flush.
  void Ucx() {
    std::unique_ptr<Transport> ucx =
        std::move(OrExit(MakeGpuTransports({"ucx"}, {driver_.get(), memory_.get(), pool_.get(), nullptr}))[0]);
    const PoolExport exported = OrExit(peer_->ExportByUcx("ucx_reached"));
    std::unique_ptr<RemotePool> remote = OrExit(ucx->Open(exported));
    uint8_t* source = nullptr;
    Check(cudaMalloc(reinterpret_cast<void**>(&source), kPoolBytes));
    OrExit(FillPool(DeviceBytes(source, kPoolBytes, 0), kSeed));
    auto put = [&](const std::vector<CopyRun>& runs) {
      const int64_t begin = MonotonicNanoseconds();
      OrExit(remote->Write({.source_base = source, .runs = runs}));
      while (!OrExit(remote->PollFlushed())) {
        ucx->Progress();
        if (MonotonicNanoseconds() - begin > kPatienceNs) OrExit(absl::DeadlineExceededError("UCX does not end"));
      }
      return static_cast<double>(MonotonicNanoseconds() - begin);
    };
    const PageSet set = kSets[0].set;
    const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
    put(runs);
    OrExit(peer_->VerifyByUcx(set, kSeed));
    std::vector<double> times, times_128;
    for (int round = 0; round < kRounds; ++round) times.push_back(put(runs));
    const std::vector<CopyRun> few = MakeRuns(kTokens128, kPoolBytes);
    for (int round = 0; round < kLatencyRounds; ++round) times_128.push_back(put(few));
    const double rate = static_cast<double>(set.page_bytes * set.pages) / Percentile(times, 0.5);
    printf(
        "{\"ucx\": \"put for each page\", \"version\": \"%s\", \"pages\": %lld, \"page_bytes\": %lld, \"GB/s\": %.1f, "
        "\"of_copy_engine\": %.4f, \"122_pages_p50_us\": %.1f, \"verified\": true}\n",
        TransportVersion().c_str(), static_cast<long long>(set.pages), static_cast<long long>(set.page_bytes), rate,
        rate / reference_, Percentile(times_128, 0.5) / 1e3);
    fflush(stdout);
    remote.reset();
    cudaFree(source);
  }

  // The other process pushes into this one's pool and sees its own GPU only.
  void Hidden() {
    for (const NamedSet& named : {kSets[0], kSets[4]}) {
      OrExit(PoisonPool(*pool_));
      OrExit(peer_->Fill(kSeed));
      OrExit(peer_->PushOnce(export_->description(), named.set));
      OrExit(CheckPool(*pool_, MakeRuns(named.set, kPoolBytes), kSeed));
      OrExit(peer_->BeginPushing(export_->description(), named.set));
      SharedWords& words = peer_->words();
      const uint32_t before = words.seen;
      const int64_t begin = MonotonicNanoseconds();
      while (words.seen - before < 1000) {
        if (MonotonicNanoseconds() - begin > kPatienceNs)
          OrExit(absl::DeadlineExceededError("the peer pushes no more"));
      }
      const double bytes = 1000.0 * static_cast<double>(named.set.page_bytes * named.set.pages);
      const double rate = bytes / static_cast<double>(MonotonicNanoseconds() - begin);
      printf(
          "{\"hidden\": \"a source that sees its own GPU only\", \"pages\": \"%s\", \"GB/s\": %.1f, "
          "\"of_copy_engine\": %.3f, \"verified\": true}\n",
          named.name, rate, rate / reference_);
      peer_ = OrExit(GpuPeer::Start({.device = peer_device_, .pool_bytes = kPoolBytes, .sees_own_device_only = true}));
    }
  }

 private:
  static constexpr uint64_t kSeed = 4711;

  static std::vector<std::optional<CopyChoice>> Choices() {
    return {Kernel(8), Kernel(16), Kernel(32), kEngine, std::nullopt};
  }

  // GB/s of the copy engine for one message.
  void MeasureReference() {
    constexpr size_t kBytes = size_t{512} << 20;
    reference_ = MeasureRate(
        kBytes, [&] { Check(cudaMemcpyAsync(remote_->base(), pool_->base(), kBytes, cudaMemcpyDefault, stream())); });
    printf("{\"method\": \"copy engine\", \"message_bytes\": %zu, \"GB/s\": %.1f}\n", kBytes, reference_);
  }

  cudaStream_t stream() { return remote_->pusher().stream(); }

  double MeasureRate(double bytes, const std::function<void()>& enqueue) {
    std::vector<double> rates;
    for (int round = 0; round < kWarmUp + kRounds; ++round) {
      Check(cudaEventRecord(begin_, stream()));
      enqueue();
      Check(cudaEventRecord(end_, stream()));
      Check(cudaEventSynchronize(end_));
      float milliseconds = 0;
      Check(cudaEventElapsedTime(&milliseconds, begin_, end_));
      if (round >= kWarmUp) rates.push_back(bytes / milliseconds / 1e6);
    }
    return Percentile(rates, 0.5);
  }

  void Push(absl::Span<const CopyRun> runs, const std::optional<CopyChoice>& choice, uint32_t* flag = nullptr,
            uint32_t value = 0) {
    OrExit(remote_->Push(pool_->base(), runs, flag, value, choice).status());
  }

  // A list that is there already, as for all layer groups of a hand-over but the first; and pushes one after another,
  // of which each brings its list while the one before it moves.
  void Rate(const NamedSet& named, const std::optional<CopyChoice>& choice) {
    const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
    const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
    OrExit(peer_->Poison());
    Push(runs, choice);
    Check(cudaStreamSynchronize(stream()));
    OrExit(peer_->Verify(named.set, kSeed));
    const bool by_kernel = choice.has_value() && choice->method == CopyMethod::kKernel;
    double rate = 0;
    if (by_kernel) {
      PageCopier& copier = remote_->pusher().copier();
      const PageCopier::List list = OrExit(copier.Upload(runs, stream()));
      const PageCopier::Push push = {.source = {pool_->base(), kPoolBytes},
                                     .destination = {remote_->base(), kPoolBytes}};
      rate = MeasureRate(bytes, [&] { OrExit(copier.Enqueue(list, push, choice->blocks)); });
    }
    const double with_list =
        MeasureSequence(bytes, [&] { return remote_->Push(pool_->base(), runs, nullptr, 0, choice); });
    const std::string with_ready_list =
        by_kernel ? absl::StrFormat("\"GB/s\": %.1f, \"of_copy_engine\": %.3f, ", rate, rate / reference_) : "";
    printf(
        "{\"rate\": \"%s\", \"pages\": %zu, \"page_bytes\": %lld, \"method\": \"%s\", %s"
        "\"one_after_another_GB/s\": %.1f, \"one_after_another_of_copy_engine\": %.3f, \"verified\": true}\n",
        named.name, runs.size(), static_cast<long long>(named.set.page_bytes), ChoiceName(choice).c_str(),
        with_ready_list.c_str(), with_list, with_list / reference_);
    fflush(stdout);
  }

  double MeasureSequence(double bytes, const std::function<absl::StatusOr<CopyChoice>()>& push) {
    std::vector<double> rates;
    for (int round = 0; round < 3; ++round) {
      Check(cudaStreamSynchronize(stream()));
      const int64_t begin = MonotonicNanoseconds();
      for (int i = 0; i < kRounds; ++i) {
        absl::StatusOr<CopyChoice> pushed = push();
        while (absl::IsUnavailable(pushed.status())) pushed = push();
        OrExit(pushed.status());
      }
      Check(cudaStreamSynchronize(stream()));
      rates.push_back(kRounds * bytes / static_cast<double>(MonotonicNanoseconds() - begin));
    }
    return Percentile(rates, 0.5);
  }

  void BothWays(const NamedSet& named) {
    const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
    const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
    std::unique_ptr<GpuPeer> other = OrExit(GpuPeer::Start({.device = peer_device_, .pool_bytes = kPoolBytes}));
    OrExit(other->BeginPushing(export_->description(), named.set));
    const double rate = MeasureRate(bytes, [&] { Push(runs, std::nullopt); });
    printf("{\"both_ways\": \"%s\", \"GB/s\": %.1f, \"of_copy_engine\": %.3f}\n", named.name, rate, rate / reference_);
  }

  // From the call until the peer's host has seen the flag.
  void Latency(const PageSet& set, const std::optional<CopyChoice>& choice) {
    const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
    SharedWords& words = peer_->words();
    auto* flag = reinterpret_cast<uint32_t*>(&words.flag);
    OrExit(peer_->BeginWatch(value_ + 1, kLatencyRounds));
    Report(set, ChoiceName(choice), TimeEach([&](uint32_t value) { Push(runs, choice, flag, value); }));
  }

  void PullLatency(const PageSet& set, int blocks) {
    OrExit(peer_->BeginPull(export_->description(), set, value_ + 1, kLatencyRounds, blocks));
    Report(set, blocks == 0 ? "pull by copy engine" : absl::StrCat("pull by kernel, ", blocks, " blocks"),
           TimeEach([&](uint32_t value) { peer_->words().doorbell.store(value, std::memory_order_release); }));
  }

  std::vector<double> TimeEach(const std::function<void(uint32_t value)>& begin_transfer) {
    SharedWords& words = peer_->words();
    std::vector<double> times;
    for (int round = 0; round < kLatencyRounds; ++round) {
      const uint32_t value = ++value_;
      const int64_t begin = MonotonicNanoseconds();
      begin_transfer(value);
      while (words.seen.load(std::memory_order_acquire) != value) {
        if (MonotonicNanoseconds() - begin > kPatienceNs) OrExit(absl::DeadlineExceededError("no flag"));
      }
      if (round >= kLatencyRounds / 10)
        times.push_back(static_cast<double>(words.seen_at_ns[value % 4096] - begin) / 1e3);
    }
    OrExit(peer_->Await());
    return times;
  }

  void Report(const PageSet& set, const std::string& method, const std::vector<double>& times) {
    printf(
        "{\"latency\": \"call to flag seen by the peer's host\", \"pages\": %lld, \"page_bytes\": %lld, \"method\": "
        "\"%s\", \"beside\": \"%s\", \"p50_us\": %.1f, \"p90_us\": %.1f}\n",
        static_cast<long long>(set.pages), static_cast<long long>(set.page_bytes), method.c_str(),
        gemm_ == nullptr ? "nothing" : gemm_name_, Percentile(times, 0.5), Percentile(times, 0.9));
    fflush(stdout);
  }

  // Products a second over some seconds.
  double Products(double seconds) {
    const int64_t before = gemm_->finished(), begin = MonotonicNanoseconds();
    while (static_cast<double>(MonotonicNanoseconds() - begin) < seconds * 1e9) {
    }
    return static_cast<double>(gemm_->finished() - before) * 1e9 / static_cast<double>(MonotonicNanoseconds() - begin);
  }

  // What the GEMM loses while `feed` is called again and again; `feed` tells the bytes that it enqueued.
  struct Loss {
    double share = 0, gigabytes_per_second = 0;
  };
  Loss MeasureLoss(double seconds, const std::function<double()>& feed) {
    const double alone = Products(seconds);
    double bytes = 0;
    const int64_t before = gemm_->finished(), begin = MonotonicNanoseconds();
    while (static_cast<double>(MonotonicNanoseconds() - begin) < seconds * 1e9) bytes += feed();
    const auto elapsed = static_cast<double>(MonotonicNanoseconds() - begin);
    const double beside = static_cast<double>(gemm_->finished() - before) * 1e9 / elapsed;
    Check(cudaStreamSynchronize(stream()));
    const double alone_again = Products(seconds);
    return {1 - beside / ((alone + alone_again) / 2), bytes / elapsed};
  }

  // Pushes without a pause.
  void BusyLink(const NamedSet& named, const std::optional<CopyChoice>& choice) {
    const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
    const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
    const Loss loss = MeasureLoss(1.0, [&] {
      Push(runs, choice);
      Check(cudaStreamSynchronize(stream()));
      return bytes;
    });
    PrintBusyLink(named, ChoiceName(choice), loss);
  }

  // The peer pulls without a pause.
  void PullBusyLink(const NamedSet& named, int blocks) {
    const double bytes = static_cast<double>(named.set.page_bytes * named.set.pages);
    const double alone = Products(1.0);
    Loss loss;
    {
      std::unique_ptr<GpuPeer> puller = OrExit(GpuPeer::Start({.device = peer_device_, .pool_bytes = kPoolBytes}));
      OrExit(puller->BeginPulling(export_->description(), named.set, blocks));
      const uint32_t pulled = puller->words().seen;
      const int64_t begin = MonotonicNanoseconds();
      loss.share = Products(1.0);
      loss.gigabytes_per_second =
          bytes * (puller->words().seen - pulled) / static_cast<double>(MonotonicNanoseconds() - begin);
    }
    loss.share = 1 - loss.share / ((alone + Products(1.0)) / 2);
    PrintBusyLink(named, absl::StrCat("pull by kernel, ", blocks, " blocks"), loss);
  }

  void PrintBusyLink(const NamedSet& named, const std::string& method, const Loss& loss) {
    printf(
        "{\"busy_link_beside\": \"%s\", \"pages\": \"%s\", \"method\": \"%s\", \"GB/s\": %.1f, \"gemm_loses\": %.4f, "
        "\"percent_per_GB/s\": %.4f}\n",
        gemm_name_, named.name, method.c_str(), loss.gigabytes_per_second, loss.share,
        100 * loss.share / loss.gigabytes_per_second);
    fflush(stdout);
  }

  // An 8K prompt's latent KV, 576 MB in eight layer groups, each as one push, once in 0.8 s: 10,000 tokens a second.
  void PrefillPace() {
    constexpr int64_t kGroupBytes = int64_t{8192} * 61 * 1152 / 8, kPaceNs = 100'000'000;
    const PageSet set = {73'728, kGroupBytes / 73'728, 18};
    const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
    int64_t last = 0;
    const Loss loss = MeasureLoss(4.0, [&] {
      if (MonotonicNanoseconds() - last < kPaceNs) return 0.0;
      last = MonotonicNanoseconds();
      Push(runs, std::nullopt);
      return static_cast<double>(set.page_bytes * set.pages);
    });
    printf("{\"prefill_pace_beside\": \"%s\", \"GB/s\": %.2f, \"gemm_loses\": %.4f}\n", gemm_name_,
           loss.gigabytes_per_second, loss.share);
    fflush(stdout);
  }

  int peer_device_ = 0;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::unique_ptr<NvlinkTransport> transport_;
  std::unique_ptr<ExportedPool> export_;
  std::unique_ptr<GpuPeer> peer_;
  std::unique_ptr<NvlinkPool> remote_;
  std::unique_ptr<GemmLoad> gemm_;
  const char* gemm_name_ = "";
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  double reference_ = 0;
  uint32_t value_ = 0;  // Of the last flag.
};

int Run(std::vector<std::string> parts) {
  if (parts.empty()) parts = {"setup", "rates", "latency", "beside_gemm"};
  const bool hidden = parts == std::vector<std::string>{"hidden"};
  Bench bench(hidden);
  for (const std::string& part : parts) {
    if (part == "rates") {
      bench.Rates();
    } else if (part == "latency") {
      bench.Latencies();
    } else if (part == "beside_gemm") {
      bench.BesideGemm();
    } else if (part == "setup") {
      bench.Setup();
    } else if (part == "ucx") {
      bench.Ucx();
    } else if (hidden) {
      bench.Hidden();
    } else {
      fprintf(stderr, "usage: kvbench [setup] [rates] [latency] [beside_gemm] [ucx], or kvbench hidden\n");
      return 2;
    }
  }
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) { return tandem::Run({argv + 1, argv + argc}); }
