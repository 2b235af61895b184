#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvtransfer/nvlink/gpu_driver.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/nvlink/nvlink_transport.h"
#include "kvtransfer/pool_memory.h"
#include "tests/bench/kvbench/gemm_load.h"
#include "tests/gpu/gpu_peer.h"

namespace tandem {

// What all parts of kvbench share. A failure ends the process with its cause.

inline constexpr uint64_t kPoolBytes = uint64_t{1536} << 20;
inline constexpr uint64_t kContentSeed = 4711;
inline constexpr int kWarmUp = 3, kRounds = 15, kLatencyRounds = 200;
inline constexpr int64_t kPatienceNs = 20'000'000'000;

void OrExit(const absl::Status& status);
template <typename T>
T OrExit(absl::StatusOr<T> result) {
  OrExit(result.status());
  return *std::move(result);
}
void Check(cudaError_t error);

double Percentile(std::vector<double> values, double share);

struct NamedSet {
  std::string name;
  PageSet set;
  int64_t bytes() const { return set.page_bytes * set.pages; }
};
// Of DeepSeek's latent attention and of others; the last one is of long runs.
inline const NamedSet kSets[] = {{"latent, 64 tokens of 61 layers", {73'728, 3'904, 11}},
                                 {"32 KiB", {32'768, 40'960, 12}},
                                 {"4 KiB", {4'096, 70'000, 13}},
                                 {"latent, one token a page", {1'152, 249'856, 14}},
                                 {"long runs", {4'718'592, 64, 15}}};
inline constexpr PageSet kTokens128 = {73'728, 122, 16}, kOnePage = {73'728, 1, 17};

inline CopyChoice Kernel(int blocks) { return {CopyMethod::kKernel, blocks}; }
inline constexpr CopyChoice kEngine = {CopyMethod::kCopyEngine, 0};
// No choice: the rule's.
std::string ChoiceName(const std::optional<CopyChoice>& choice);

// This process's pool on GPU 0, and a peer process's on the next GPU that it reaches, or else on the same.
struct Rig {
  explicit Rig(bool peer_hides = false);
  cudaStream_t stream() { return remote->pusher().stream(); }
  void Push(absl::Span<const CopyRun> runs, const std::optional<CopyChoice>& choice, uint32_t* flag = nullptr,
            uint32_t value = 0);
  // The median of some rounds, in GB/s.
  double MeasureRate(double bytes, const std::function<void()>& enqueue);
  // Of pushes that the host enqueues one after another.
  double MeasureSequence(double bytes, const std::function<absl::StatusOr<CopyChoice>()>& push);
  // Microseconds from each call until the peer's host has seen the flag that is the call's `value`, and until the call
  // returned.
  struct Times {
    std::vector<double> seen, posted;
  };
  Times TimeEach(const std::function<void(uint32_t value)>& begin_transfer);
  std::unique_ptr<GpuPeer> StartPeer(bool hides = false) const;

  int peer_device = 0;
  std::unique_ptr<GpuDriver> driver;
  std::unique_ptr<PoolMemory> memory;
  std::unique_ptr<GpuPool> pool;
  std::unique_ptr<NvlinkTransport> transport;
  std::unique_ptr<ExportedPool> exported;
  std::unique_ptr<GpuPeer> peer;
  std::unique_ptr<NvlinkPool> remote;
  std::unique_ptr<GemmLoad> gemm;  // While one runs.
  const char* beside = "nothing";
  double reference = 0;  // GB/s of the copy engine with one message of 512 MiB.
  uint32_t last_flag = 0;

 private:
  void MeasureReference();
  cudaEvent_t begin = nullptr, end = nullptr;
};

// The parts; each prints a line of JSON a figure.
void RunSetup(Rig& rig);
void RunRates(Rig& rig, absl::Span<const NamedSet> sets);
void RunPatterns(Rig& rig, const NamedSet& named);
void RunChecksums(Rig& rig);
void RunLatencies(Rig& rig);
void RunBesideGemm(Rig& rig);
void RunUcx(Rig& rig);
void RunHidden(Rig& rig);

// Of RunLatencies and beside a GEMM.
void MeasureLatency(Rig& rig, const PageSet& set, const std::optional<CopyChoice>& choice);
void MeasurePullLatency(Rig& rig, const PageSet& set, int blocks);
std::vector<std::optional<CopyChoice>> LatencyChoices();

}  // namespace tandem
