#include <cstdio>

#include "kvtransfer/nvlink/gpu_transports.h"
#include "kvtransfer/self_test.h"
#include "kvtransfer/transport_factory.h"
#include "tests/bench/kvbench/rig.h"
#include "tests/gpu/pool_check.h"

namespace tandem {
namespace {

// By one of UCX's ways, and its flush.
void MeasureUcx(Rig& rig, const std::string& kind, const char* what) {
  std::unique_ptr<Transport> ucx = std::move(OrExit(MakeGpuTransports(
      {kind == "ucx_reached" ? "ucx" : kind}, {rig.driver.get(), rig.memory.get(), rig.pool.get(), nullptr}))[0]);
  std::unique_ptr<PoolBuffer> reached;
  uint8_t* source = rig.pool->base();
  if (kind == "ucx_reached") {
    reached = OrExit(rig.memory->Allocate(kPoolBytes, PoolMemory::Place::kPool));
    source = reached->base();
    OrExit(FillPool(DeviceBytes(source, kPoolBytes, 0), kContentSeed));
  }
  const PoolExport exported = OrExit(rig.peer->ExportByUcx(kind));
  std::unique_ptr<RemotePool> remote = OrExit(ucx->Open(exported));
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
  OrExit(rig.peer->VerifyByUcx(set, kContentSeed));
  std::vector<double> times, times_128;
  for (int round = 0; round < kRounds; ++round) times.push_back(put(runs));
  const std::vector<CopyRun> few = MakeRuns(kTokens128, kPoolBytes);
  for (int round = 0; round < kLatencyRounds; ++round) times_128.push_back(put(few));
  const double rate = static_cast<double>(kSets[0].bytes()) / Percentile(times, 0.5);
  printf(
      "{\"ucx\": \"%s\", \"version\": \"%s\", \"path\": \"%s\", \"pages\": %lld, \"page_bytes\": %lld, \"GB/s\": %.1f, "
      "\"of_copy_engine\": %.4f, \"122_pages_p50_us\": %.1f, \"verified\": true}\n",
      what, TransportVersion().c_str(), remote->path().c_str(), static_cast<long long>(set.pages),
      static_cast<long long>(set.page_bytes), rate, rate / rig.reference, Percentile(times_128, 0.5) / 1e3);
  fflush(stdout);
}

}  // namespace

// A pool of 64 GiB, or what the device has room for.
void RunSetup(Rig& rig) {
  for (uint64_t bytes : {uint64_t{64} << 30, uint64_t{32} << 30, uint64_t{8} << 30}) {
    absl::StatusOr<std::unique_ptr<GpuPeer>> peer = GpuPeer::Start({.device = rig.peer_device, .pool_bytes = bytes});
    if (!peer.ok()) continue;
    const int64_t begin = MonotonicNanoseconds();
    std::unique_ptr<RemotePool> remote = OrExit(rig.transport->Open((*peer)->pool()));
    const int64_t opened = MonotonicNanoseconds();
    const uint64_t area = bytes - kTestAreaBytes;
    const SelfTestResult test = OrExit(WriteSelfTest(*rig.transport, *rig.memory, remote, area));
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

void RunUcx(Rig& rig) {
  MeasureUcx(rig, "ucx_reached", "put for each page");
  MeasureUcx(rig, "ucx_staged", "in chunks, buffers on the GPUs");
  MeasureUcx(rig, "ucx_host_staged", "in chunks, buffers on the hosts");
}

// The other process pushes into this one's pool and sees its own GPU only.
void RunHidden(Rig& rig) {
  for (const NamedSet& named : {kSets[0], kSets[4]}) {
    OrExit(PoisonPool(*rig.pool));
    OrExit(rig.peer->Fill(kContentSeed));
    OrExit(rig.peer->PushOnce(rig.exported->description(), named.set));
    OrExit(CheckPool(*rig.pool, MakeRuns(named.set, kPoolBytes), kContentSeed));
    OrExit(rig.peer->BeginPushing(rig.exported->description(), named.set));
    SharedWords& words = rig.peer->words();
    const uint32_t before = words.seen;
    const int64_t begin = MonotonicNanoseconds();
    while (words.seen - before < 1000) {
      if (MonotonicNanoseconds() - begin > kPatienceNs) OrExit(absl::DeadlineExceededError("the peer pushes no more"));
    }
    const double bytes = 1000.0 * static_cast<double>(named.set.page_bytes * named.set.pages);
    const double rate = bytes / static_cast<double>(MonotonicNanoseconds() - begin);
    printf(
        "{\"hidden\": \"a source that sees its own GPU only\", \"pages\": \"%s\", \"GB/s\": %.1f, "
        "\"of_copy_engine\": %.3f, \"verified\": true}\n",
        named.name.c_str(), rate, rate / rig.reference);
    rig.peer = rig.StartPeer(/*hides=*/true);
  }
}

}  // namespace tandem
