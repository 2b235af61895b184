#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvtransfer/page_sums.h"
#include "tests/bench/kvbench/rig.h"
#include "tests/gpu/pool_check.h"

namespace tandem {
namespace {

// A list that is there already, as for all layer groups of a hand-over but the first; and pushes one after another,
// of which each brings its list while the one before it moves.
void Rate(Rig& rig, const NamedSet& named, const std::optional<CopyChoice>& choice) {
  const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
  const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
  OrExit(rig.peer->Poison());
  rig.Push(runs, choice);
  Check(cudaStreamSynchronize(rig.stream()));
  OrExit(rig.peer->Verify(named.set, kContentSeed));
  const bool by_kernel = choice.has_value() && choice->method == CopyMethod::kKernel;
  double rate = 0;
  if (by_kernel) {
    PageCopier& copier = rig.remote->pusher().copier();
    const PageCopier::List list = OrExit(copier.Upload(runs, rig.stream()));
    const PageCopier::Push push = {.source = {rig.pool->base(), kPoolBytes},
                                   .destination = {rig.remote->base(), kPoolBytes}};
    rate = rig.MeasureRate(bytes, [&] { OrExit(copier.Enqueue(list, push, choice->blocks)); });
  }
  const double with_list =
      rig.MeasureSequence(bytes, [&] { return rig.remote->Push(rig.pool->base(), runs, nullptr, 0, choice); });
  const std::string with_ready_list =
      by_kernel ? absl::StrFormat("\"GB/s\": %.1f, \"of_copy_engine\": %.3f, ", rate, rate / rig.reference) : "";
  printf(
      "{\"rate\": \"%s\", \"pages\": %zu, \"page_bytes\": %lld, \"method\": \"%s\", %s"
      "\"one_after_another_GB/s\": %.1f, \"one_after_another_of_copy_engine\": %.3f, \"verified\": true}\n",
      named.name.c_str(), runs.size(), static_cast<long long>(named.set.page_bytes), ChoiceName(choice).c_str(),
      with_ready_list.c_str(), with_list, with_list / rig.reference);
  fflush(stdout);
}

void BothWays(Rig& rig, const NamedSet& named) {
  const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
  const double bytes = static_cast<double>(named.set.page_bytes) * static_cast<double>(runs.size());
  std::unique_ptr<GpuPeer> other = rig.StartPeer();
  OrExit(other->BeginPushing(rig.exported->description(), named.set));
  const double rate = rig.MeasureRate(bytes, [&] { rig.Push(runs, std::nullopt); });
  // What came is written over what goes, so that neither can be verified here; the visibility test does.
  other.reset();
  OrExit(FillPool(*rig.pool, kContentSeed));
  printf("{\"both_ways\": \"%s\", \"GB/s\": %.1f, \"of_copy_engine\": %.3f}\n", named.name.c_str(), rate,
         rate / rig.reference);
}

// Two processes of the peer's GPU push into this one's pool.
void ManyToOne(Rig& rig, const NamedSet& named) {
  std::unique_ptr<GpuPeer> sources[] = {rig.StartPeer(), rig.StartPeer()};
  OrExit(PoisonPool(*rig.pool));
  for (const auto& source : sources) {
    OrExit(source->Fill(kContentSeed));
    OrExit(source->BeginPushing(rig.exported->description(), named.set));
  }
  auto pushes = [&] { return sources[0]->words().seen.load() + sources[1]->words().seen.load(); };
  const int64_t begin = MonotonicNanoseconds();
  const uint32_t before = pushes();
  while (MonotonicNanoseconds() - begin < 1'000'000'000) {
  }
  const double rate = static_cast<double>(pushes() - before) * static_cast<double>(named.bytes()) /
                      static_cast<double>(MonotonicNanoseconds() - begin);
  for (auto& source : sources) source.reset();
  OrExit(CheckPool(*rig.pool, MakeRuns(named.set, kPoolBytes), kContentSeed));
  OrExit(FillPool(*rig.pool, kContentSeed));
  printf(
      "{\"pattern\": \"two to one\", \"pages\": \"%s\", \"GB/s\": %.1f, \"of_copy_engine\": %.3f, "
      "\"verified\": true}\n",
      named.name.c_str(), rate, rate / rig.reference);
}

// This process pushes into the pools of two, in turn.
void OneToMany(Rig& rig, const NamedSet& named) {
  const std::unique_ptr<GpuPeer> other = rig.StartPeer();
  const std::unique_ptr<NvlinkPool> remote = OrExit(rig.transport->OpenPool(other->pool()));
  const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
  NvlinkPool* const pools[] = {rig.remote.get(), remote.get()};
  const int64_t begin = MonotonicNanoseconds();
  for (int push = 0; push < 4 * kRounds; ++push) {
    absl::StatusOr<CopyChoice> pushed;
    do {
      pushed = pools[push % 2]->Push(rig.pool->base(), runs, nullptr, 0);
    } while (absl::IsUnavailable(pushed.status()));
    OrExit(pushed.status());
  }
  Check(cudaStreamSynchronize(rig.stream()));
  Check(cudaStreamSynchronize(remote->pusher().stream()));
  const double rate =
      4.0 * kRounds * static_cast<double>(named.bytes()) / static_cast<double>(MonotonicNanoseconds() - begin);
  OrExit(other->Poison());
  OrExit(remote->Push(rig.pool->base(), runs, nullptr, 0).status());
  Check(cudaStreamSynchronize(remote->pusher().stream()));
  OrExit(other->Verify(named.set, kContentSeed));
  printf(
      "{\"pattern\": \"one to two\", \"pages\": \"%s\", \"GB/s\": %.1f, \"of_copy_engine\": %.3f, "
      "\"verified\": true}\n",
      named.name.c_str(), rate, rate / rig.reference);
}

}  // namespace

void RunRates(Rig& rig, absl::Span<const NamedSet> sets) {
  for (const NamedSet& named : sets) {
    for (int blocks : {4, 8, 16, 24, 32, 64}) Rate(rig, named, Kernel(blocks));
    // Orders of 1 us each: a set of many would take minutes.
    if (named.set.pages <= 4'000) Rate(rig, named, kEngine);
    Rate(rig, named, std::nullopt);
  }
}

void RunPatterns(Rig& rig, const NamedSet& named) {
  BothWays(rig, named);
  ManyToOne(rig, named);
  OneToMany(rig, named);
  fflush(stdout);
}

// A list with sums beside the same without, at the source; and what the destination and a host take to verify.
void RunChecksums(Rig& rig) {
  PageCopier& copier = rig.remote->pusher().copier();
  const PageCopier::Push push = {.source = {rig.pool->base(), kPoolBytes},
                                 .destination = {rig.remote->base(), kPoolBytes}};
  for (const NamedSet& named : {kSets[0], kSets[1], kSets[2], kSets[3]}) {
    const std::vector<CopyRun> runs = MakeRuns(named.set, kPoolBytes);
    std::vector<uint32_t> page_of_run(runs.size());
    for (size_t i = 0; i < runs.size(); ++i) page_of_run[i] = static_cast<uint32_t>(i);
    const auto bytes = static_cast<double>(named.bytes());
    double rates[3] = {};
    {
      const PageCopier::List plain = OrExit(copier.Upload(runs, rig.stream()));
      rates[0] = rig.MeasureRate(bytes, [&] { OrExit(copier.Enqueue(plain, push)); });
    }
    const PageCopier::List with_sums = OrExit(copier.Upload(runs, rig.stream(), page_of_run));
    rates[1] = rig.MeasureRate(bytes, [&] { OrExit(copier.Enqueue(with_sums, push)); });
    rates[2] = rig.MeasureRate(bytes, [&] {
      OrExit(copier.EnqueueSums(with_sums, PoolSide::kDestination, {rig.pool->base(), kPoolBytes}));
    });
    std::vector<uint8_t> host(kPoolBytes, 1);
    PageSums sums(runs.size());
    OrExit(rig.memory->Read(rig.pool->base(), absl::MakeSpan(host)));
    AddHostSums(host.data(), PoolSide::kDestination, runs, page_of_run, sums);
    Check(cudaStreamSynchronize(rig.stream()));
    if (!std::equal(sums.begin(), sums.end(), with_sums.sums().begin())) OrExit(absl::DataLossError("other sums"));
    const int64_t begin = MonotonicNanoseconds();
    AddHostSums(host.data(), PoolSide::kSource, runs, page_of_run, sums);
    const double host_rate = bytes / static_cast<double>(MonotonicNanoseconds() - begin);
    printf(
        "{\"checksums\": \"%s\", \"without_GB/s\": %.1f, \"with_GB/s\": %.1f, \"share\": %.3f, "
        "\"verify_GB/s\": %.1f, \"verify_by_one_host_thread_GB/s\": %.1f, \"verified\": true}\n",
        named.name.c_str(), rates[0], rates[1], rates[1] / rates[0], rates[2], host_rate);
    fflush(stdout);
  }
}

}  // namespace tandem
