#include <cstdio>

#include "absl/strings/str_cat.h"
#include "tests/bench/kvbench/rig.h"

namespace tandem {
namespace {

constexpr struct {
  const char* name;
  GemmLoad::Shape shape;
} kGemms[] = {{"4096x7168x2048", {4096, 7168, 2048}}, {"8192x8192x8192", {8192, 8192, 8192}}};

// Products a second over some seconds.
double Products(Rig& rig, double seconds) {
  const int64_t before = rig.gemm->finished(), begin = MonotonicNanoseconds();
  while (static_cast<double>(MonotonicNanoseconds() - begin) < seconds * 1e9) {
  }
  return static_cast<double>(rig.gemm->finished() - before) * 1e9 / static_cast<double>(MonotonicNanoseconds() - begin);
}

// What the GEMM loses while `feed` is called again and again; `feed` tells the bytes that it enqueued.
struct Loss {
  double share = 0, gigabytes_per_second = 0;
};
Loss MeasureLoss(Rig& rig, double seconds, const std::function<double()>& feed) {
  const double alone = Products(rig, seconds);
  double bytes = 0;
  const int64_t before = rig.gemm->finished(), begin = MonotonicNanoseconds();
  while (static_cast<double>(MonotonicNanoseconds() - begin) < seconds * 1e9) bytes += feed();
  const auto elapsed = static_cast<double>(MonotonicNanoseconds() - begin);
  const double beside = static_cast<double>(rig.gemm->finished() - before) * 1e9 / elapsed;
  Check(cudaStreamSynchronize(rig.stream()));
  const double alone_again = Products(rig, seconds);
  return {1 - beside / ((alone + alone_again) / 2), bytes / elapsed};
}

void PrintBusyLink(const Rig& rig, const NamedSet& named, const std::string& method, const Loss& loss) {
  printf(
      "{\"busy_link_beside\": \"%s\", \"pages\": \"%s\", \"method\": \"%s\", \"GB/s\": %.1f, \"gemm_loses\": %.4f, "
      "\"percent_per_GB/s\": %.4f}\n",
      rig.beside, named.name.c_str(), method.c_str(), loss.gigabytes_per_second, loss.share,
      100 * loss.share / loss.gigabytes_per_second);
  fflush(stdout);
}

// Pushes without a pause.
void BusyLink(Rig& rig, const NamedSet& named, const std::optional<CopyChoice>& choice) {
  const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
  const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
  const Loss loss = MeasureLoss(rig, 1.0, [&] {
    rig.Push(runs, choice);
    Check(cudaStreamSynchronize(rig.stream()));
    return bytes;
  });
  PrintBusyLink(rig, named, ChoiceName(choice), loss);
}

// The peer pulls without a pause.
void PullBusyLink(Rig& rig, const NamedSet& named, int blocks) {
  const double bytes = static_cast<double>(named.set.page_bytes * named.set.pages);
  const double alone = Products(rig, 1.0);
  Loss loss;
  {
    std::unique_ptr<GpuPeer> puller = rig.StartPeer();
    OrExit(puller->BeginPulling(rig.exported->description(), named.set, blocks));
    const uint32_t pulled = puller->words().seen;
    const int64_t begin = MonotonicNanoseconds();
    loss.share = Products(rig, 1.0);
    loss.gigabytes_per_second =
        bytes * (puller->words().seen - pulled) / static_cast<double>(MonotonicNanoseconds() - begin);
  }
  loss.share = 1 - loss.share / ((alone + Products(rig, 1.0)) / 2);
  PrintBusyLink(rig, named, absl::StrCat("pull by kernel, ", blocks, " blocks"), loss);
}

// An 8K prompt's latent KV, 576 MB in eight layer groups, each as one push, once in 0.8 s: 10,000 tokens a second.
void PrefillPace(Rig& rig) {
  constexpr int64_t kGroupBytes = int64_t{8192} * 61 * 1152 / 8, kPaceNs = 100'000'000;
  const PageSet set = {73'728, kGroupBytes / 73'728, 18};
  const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
  int64_t last = 0;
  const Loss loss = MeasureLoss(rig, 4.0, [&] {
    if (MonotonicNanoseconds() - last < kPaceNs) return 0.0;
    last = MonotonicNanoseconds();
    rig.Push(runs, std::nullopt);
    return static_cast<double>(set.page_bytes * set.pages);
  });
  printf("{\"prefill_pace_beside\": \"%s\", \"GB/s\": %.2f, \"gemm_loses\": %.4f}\n", rig.beside,
         loss.gigabytes_per_second, loss.share);
  fflush(stdout);
}

}  // namespace

void RunBesideGemm(Rig& rig) {
  for (const auto& gemm : kGemms) {
    absl::StatusOr<std::unique_ptr<GemmLoad>> load = GemmLoad::Start(0, gemm.shape);
    if (!load.ok()) {
      printf("{\"skipped\": \"beside a GEMM\", \"cause\": \"%s\"}\n", std::string(load.status().message()).c_str());
      return;
    }
    rig.gemm = *std::move(load);
    rig.beside = gemm.name;
    Products(rig, 1.0);  // Warm.
    for (const auto& choice : LatencyChoices()) MeasureLatency(rig, kTokens128, choice);
    for (int blocks : {0, 16, 32}) MeasurePullLatency(rig, kTokens128, blocks);
    for (const std::optional<CopyChoice>& choice :
         {std::optional<CopyChoice>(Kernel(8)), std::optional<CopyChoice>(Kernel(16)),
          std::optional<CopyChoice>(Kernel(32)), std::optional<CopyChoice>(kEngine)}) {
      BusyLink(rig, kSets[0], choice);
    }
    BusyLink(rig, kSets[4], kEngine);
    for (int blocks : {16, 32}) PullBusyLink(rig, kSets[0], blocks);
    PrefillPace(rig);
    rig.gemm.reset();
    rig.beside = "nothing";
  }
}

}  // namespace tandem
