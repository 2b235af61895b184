#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/kv_layout.h"
#include "kvtransfer/transport.h"

namespace tandem {

// What both processes see: host memory that both GPUs map, too.
struct SharedWords {
  std::atomic<uint32_t> flag;      // Of pushes into the peer.
  std::atomic<uint32_t> seen;      // The last flag that the peer's host saw.
  std::atomic<uint32_t> doorbell;  // Asks the peer to pull.
  int64_t seen_at_ns[4096];        // Monotonic clock; of flag value v at v % 4096.
};

// Pages of a test: `pages` runs of `page_bytes` between pools of `pool_bytes`, in an order that `seed` draws.
struct PageSet {
  int64_t page_bytes = 0;
  int64_t pages = 0;
  uint64_t seed = 0;
};
std::vector<CopyRun> MakeRuns(const PageSet& set, uint64_t pool_bytes);

inline constexpr uint8_t kPoison = 0xA5;

// Of links between the two: the latent of DeepSeek's attention, eight layers of it. 151 MB.
inline constexpr KvLayout kGpuLayout = {
    .num_layers = 8, .num_kv_heads = 1, .head_dim = 576, .num_planes = 1, .page_tokens = 64, .num_pages = 256};
inline constexpr int kGpuHandoverTokens = 1000;

// A second process with a pool on a GPU (the program gpu_peer), driven by commands. Its methods wait for the answer,
// and at most a minute; INTERNAL is what the peer said, UNAVAILABLE its death.
//
// Thread-safety: not thread-safe.
// Ownership: owns the process, which ends with it.
class GpuPeer {
 public:
  struct Options {
    int device = 0;
    uint64_t pool_bytes = 0;
    bool sees_own_device_only = false;
  };
  static absl::StatusOr<std::unique_ptr<GpuPeer>> Start(const Options& options);
  ~GpuPeer();

  const PoolExport& pool() const { return pool_; }
  SharedWords& words() { return *words_; }
  pid_t pid() const { return pid_; }
  void Kill(int signal);
  void WaitForEnd();

  absl::Status Poison() { return Say("poison"); }
  absl::Status Fill(uint64_t seed);
  // OK when the runs' bytes arrived from a pool filled with `content_seed`, and nothing else was touched.
  absl::Status Verify(const PageSet& set, uint64_t content_seed);
  // Lets the peer's host wait for flags from `first` on and note when it saw each; Await ends that.
  absl::Status BeginWatch(uint32_t first, uint32_t count);
  // Lets the peer pull the set out of `source` once for each of `count` rings of the doorbell. With 0 blocks by its
  // copy engine.
  absl::Status BeginPull(const PoolExport& source, const PageSet& set, uint32_t first, uint32_t count, int blocks);
  absl::Status Await();
  // Lets the peer push the set into `destination`, again and again until it is killed; returns in the midst of it.
  absl::Status BeginPushing(const PoolExport& destination, const PageSet& set);
  // Lets the peer pull the set out of `source`, again and again until it ends; words().seen counts the times. Returns
  // in the midst of it.
  absl::Status BeginPulling(const PoolExport& source, const PageSet& set, int blocks);
  // Pushes once, and waits until it can be read. INTERNAL also where a peer that sees its own device only finds the
  // destination's, or does not push by kernel.
  absl::Status PushOnce(const PoolExport& destination, const PageSet& set);
  // The peer's pool for one of kGpuTransports, or by "ucx_reached" a second one in memory of cudaMalloc, which UCX
  // reaches. Poisoned. INTERNAL: UCX cannot.
  absl::StatusOr<PoolExport> ExportByUcx(const std::string& kind);
  absl::Status VerifyByUcx(const PageSet& set, uint64_t content_seed);
  // The peer's pool as that of a decode worker (tests/support/link_ends.h), whose links come to the port; pages are
  // free again as soon as KV has arrived.
  struct Listening {
    int port = 0;
    Incarnation incarnation;
  };
  absl::StatusOr<Listening> BecomeDecode(const std::string& transport);
  // Lets the peer, as a prefill worker, hand over to a decode worker of that port, again and again until it is killed,
  // beside one hand-over that has written all and never commits.
  absl::Status BeginHandingOver(int port, Incarnation decode, const std::string& transport);
  // Fills and verifies the self-test's area as a decode worker does.
  absl::Status VerifySelfTestArea(uint64_t area, uint64_t large_seed, uint64_t small_seed);

 private:
  GpuPeer() = default;
  absl::Status Say(const std::string& command);
  // Waits until the peer has counted some times.
  absl::Status AwaitTimes();
  absl::Status Send(const std::string& command);
  absl::StatusOr<std::string> ReadLine();

  bool hides_ = false;  // It sees its own device only.
  pid_t pid_ = -1;
  int to_peer_ = -1, from_peer_ = -1, words_fd_ = -1;
  std::string buffer_;
  SharedWords* words_ = nullptr;
  PoolExport pool_;
};

// PoolExport as words of a command line, and back.
std::string FormatExport(const PoolExport& pool);
absl::StatusOr<PoolExport> ParseExport(absl::Span<const std::string> words);

int64_t MonotonicNanoseconds();

}  // namespace tandem
