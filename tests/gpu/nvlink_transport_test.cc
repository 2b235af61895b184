// Two processes with a pool each: this one and gpu_peer. With two devices that reach each other they have one each.

#include "kvtransfer/nvlink/nvlink_transport.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/self_test.h"
#include "tests/gpu/gpu_peer.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/gpu/page_pattern.h"
#include "tests/gpu/pool_check.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kPoolBytes = uint64_t{256} << 20;
constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr PageSet kLatentPages = {73'728, 1'500, 7}, kOtherPages = {73'728, 1'500, 8};

class NvlinkTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    peer_device_ = gpus.peer_device;
    ASSERT_THAT(CudaStatus(cudaSetDevice(0), "cudaSetDevice"), IsOk());
    ASSERT_OK_AND_ASSIGN(driver_, NewCudaDriver());
    ASSERT_OK_AND_ASSIGN(memory_, NewCudaMemory(0));
    ASSERT_OK_AND_ASSIGN(pool_, GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    ASSERT_OK_AND_ASSIGN(transport_, NvlinkTransport::Create(*driver_, {.device = 0, .pool = pool_.get()}));
    ASSERT_OK_AND_ASSIGN(export_, transport_->Export(pool_->base(), pool_->bytes()));
    StartPeer();
  }
  void StartPeer(bool sees_own_device_only = false) {
    ASSERT_OK_AND_ASSIGN(
        peer_, GpuPeer::Start(
                   {.device = peer_device_, .pool_bytes = kPoolBytes, .sees_own_device_only = sees_own_device_only}));
  }
  static bool AwaitFlushed(RemotePool& pool) {
    const absl::Time deadline = Clock::Real().Now() + kPatience;
    while (true) {
      absl::StatusOr<bool> flushed = pool.PollFlushed();
      EXPECT_THAT(flushed, IsOk());
      if (!flushed.ok()) return false;
      if (*flushed) return true;
      if (Clock::Real().Now() > deadline) return false;
    }
  }
  // From this process to the peer, through a mapping made for it.
  void PushAndVerify(const PageSet& set) {
    const uint64_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    ASSERT_THAT(FillPool(*pool_, seed), IsOk());
    ASSERT_THAT(peer_->Poison(), IsOk());
    ASSERT_OK_AND_ASSIGN(auto remote, transport_->Open(peer_->pool()));
    ASSERT_THAT(remote->Write({.source_base = pool_->base(), .runs = MakeRuns(set, kPoolBytes)}), IsOk());
    ASSERT_TRUE(AwaitFlushed(*remote));
    EXPECT_THAT(peer_->Verify(set, seed), IsOk());
  }
  // And the other way.
  void ReceiveAndVerify(const PageSet& set) {
    const uint64_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    ASSERT_THAT(PoisonPool(*pool_), IsOk());
    ASSERT_THAT(peer_->Fill(seed), IsOk());
    ASSERT_THAT(peer_->PushOnce(export_->description(), set), IsOk());
    EXPECT_THAT(CheckPool(*pool_, MakeRuns(set, kPoolBytes), seed), IsOk());
  }

  int peer_device_ = 0;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::unique_ptr<NvlinkTransport> transport_;
  std::unique_ptr<ExportedPool> export_;
  std::unique_ptr<GpuPeer> peer_;
};

TEST_F(NvlinkTransportTest, MovesPagesOfManySizesByWhateverMethodSuitsThem) {
  for (const PageSet& set : {PageSet{73'728, 1, 1}, kLatentPages, PageSet{1'152, 200'000, 2}, PageSet{4'096, 30'000, 3},
                             PageSet{16, 5'000, 4}, PageSet{5 << 20, 20, 5}, PageSet{73'728, 122, 6}}) {
    SCOPED_TRACE(set.page_bytes);
    PushAndVerify(set);
    ReceiveAndVerify(set);
  }
}

TEST_F(NvlinkTransportTest, TheSelfTestMeasuresAndItsPatternsArrive) {
  ASSERT_OK_AND_ASSIGN(auto remote, transport_->Open(peer_->pool()));
  const uint64_t area = kPoolBytes - kTestAreaBytes;
  ASSERT_OK_AND_ASSIGN(SelfTestResult result, WriteSelfTest(*transport_, *memory_, remote, area));
  EXPECT_GT(result.gigabytes_per_second, 1);
  EXPECT_GT(result.latency_us, 0);
  EXPECT_THAT(peer_->VerifySelfTestArea(area, result.large_seed, result.small_seed), IsOk());
  EXPECT_THAT(peer_->VerifySelfTestArea(area, result.large_seed + 1, result.small_seed),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("other bytes")));
}

TEST_F(NvlinkTransportTest, ARunThatLeavesThePoolIsRefusedAndNothingMoves) {
  ASSERT_THAT(peer_->Poison(), IsOk());
  ASSERT_OK_AND_ASSIGN(auto remote, transport_->Open(peer_->pool()));
  EXPECT_THAT(remote->Write({.source_base = pool_->base(),
                             .runs = {{0, 0, 4096}, {0, static_cast<int64_t>(kPoolBytes) - 16, 32}}}),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_TRUE(AwaitFlushed(*remote));
  EXPECT_THAT(peer_->Verify({4096, 0, 1}, 1), IsOk());  // All poison.
}

TEST_F(NvlinkTransportTest, ManyWritesAreTakenAtOnceAndArriveInOrder) {
  const uint64_t seed = std::random_device{}();
  ASSERT_THAT(FillPool(*pool_, seed), IsOk());
  ASSERT_THAT(peer_->Poison(), IsOk());
  ASSERT_OK_AND_ASSIGN(auto remote, transport_->Open(peer_->pool()));
  const std::vector<CopyRun> runs = MakeRuns({4'096, 20'000, 3}, kPoolBytes);
  // More than there are lists; in each the destinations of the last one first, so that order shows.
  const std::vector<CopyRun> others = MakeRuns({4'096, 20'000, 8}, kPoolBytes);
  for (int i = 0; i < 50; ++i) {
    std::vector<CopyRun> wrong_first = runs;
    for (size_t j = 0; j < runs.size(); ++j) wrong_first[j].source = others[j].source;
    ASSERT_THAT(remote->Write({.source_base = pool_->base(), .runs = wrong_first}), IsOk());
  }
  ASSERT_THAT(remote->Write({.source_base = pool_->base(), .runs = runs}), IsOk());
  ASSERT_TRUE(AwaitFlushed(*remote));
  EXPECT_THAT(peer_->Verify({4'096, 20'000, 3}, seed), IsOk());
}

TEST_F(NvlinkTransportTest, SumsAreTheSameByEveryMethod) {
  ASSERT_OK_AND_ASSIGN(auto remote, transport_->Open(peer_->pool()));
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  ASSERT_THAT(FillPool(*pool_, seed), IsOk());
  std::vector<uint8_t> bytes(kPoolBytes);
  ASSERT_THAT(memory_->Read(pool_->base(), absl::MakeSpan(bytes)), IsOk());
  // By the rule: one and twenty long ones by copy engine, many by kernel; then one that is cut in many writes.
  for (const PageSet& set :
       {PageSet{73'728, 1, 1}, PageSet{5 << 20, 20, 5}, kLatentPages, PageSet{1'152, 200'000, 2}}) {
    const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
    std::vector<uint32_t> page_of_run(runs.size());
    for (size_t i = 0; i < runs.size(); ++i) page_of_run[i] = static_cast<uint32_t>(i / 3);
    PageSums wanted(page_of_run.back() + 1);
    AddHostSums(bytes.data(), PoolSide::kSource, runs, page_of_run, wanted);
    auto sums = std::make_shared<PageSums>(wanted.size());
    const size_t step = (runs.size() + 11) / 12;
    for (size_t first = 0; first < runs.size(); first += step) {
      const size_t end = std::min(runs.size(), first + step);
      ASSERT_THAT(remote->Write({.source_base = pool_->base(),
                                 .runs = {runs.begin() + first, runs.begin() + end},
                                 .sums = sums,
                                 .page_of_run = {page_of_run.begin() + first, page_of_run.begin() + end}}),
                  IsOk());
    }
    ASSERT_TRUE(AwaitFlushed(*remote));
    EXPECT_EQ(*sums, wanted) << set.page_bytes;
  }
}

TEST_F(NvlinkTransportTest, SumsOfOnePoolHoldUpNoOther) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  ASSERT_THAT(FillPool(*pool_, seed), IsOk());
  ASSERT_THAT(peer_->Poison(), IsOk());
  ASSERT_OK_AND_ASSIGN(auto first, transport_->Open(peer_->pool()));
  ASSERT_OK_AND_ASSIGN(auto second, transport_->Open(peer_->pool()));
  const std::vector<CopyRun> runs = MakeRuns(kLatentPages, kPoolBytes);
  // As many as there are lists, whose sums nobody asks for yet.
  auto sums = std::make_shared<PageSums>(runs.size());
  std::vector<uint32_t> page_of_run(runs.size());
  for (size_t i = 0; i < runs.size(); ++i) page_of_run[i] = static_cast<uint32_t>(i);
  for (int push = 0; push < 8; ++push) {
    ASSERT_THAT(first->Write({.source_base = pool_->base(), .runs = runs, .sums = sums, .page_of_run = page_of_run}),
                IsOk());
  }
  ASSERT_THAT(second->Write({.source_base = pool_->base(), .runs = runs}), IsOk());
  const absl::Time deadline = Clock::Real().Now() + kPatience;
  for (bool flushed = false; !flushed;) {
    ASSERT_LT(Clock::Real().Now(), deadline);
    transport_->Progress();
    ASSERT_OK_AND_ASSIGN(flushed, second->PollFlushed());
  }
  EXPECT_THAT(peer_->Verify(kLatentPages, seed), IsOk());
}

TEST_F(NvlinkTransportTest, ADeadPeersPoolCannotBeOpened) {
  peer_->Kill(SIGKILL);
  peer_->WaitForEnd();
  EXPECT_THAT(transport_->Open(peer_->pool()), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("offered at")));
}

TEST_F(NvlinkTransportTest, AProcessThatSeesOnlyItsOwnGpuMovesThemByKernel) {
  if (peer_device_ == 0) GTEST_SKIP() << "needs two GPUs that reach each other";
  StartPeer(/*sees_own_device_only=*/true);
  for (const PageSet& set : {kLatentPages, PageSet{73'728, 1, 1}, PageSet{5 << 20, 20, 5}}) {
    ReceiveAndVerify(set);
    PushAndVerify(set);
  }
}

// --- The failure table's rows: this process survives ---

TEST_F(NvlinkTransportTest, DestinationKilledMidPush) {
  ASSERT_THAT(FillPool(*pool_, 1), IsOk());
  {
    ASSERT_OK_AND_ASSIGN(auto remote, transport_->OpenPool(peer_->pool()));
    const std::vector<CopyRun> runs = MakeRuns(kLatentPages, kPoolBytes);
    auto push = [&](int times) {
      while (times > 0) {
        absl::Status status = remote->Push(pool_->base(), runs, nullptr, 0).status();
        if (absl::IsUnavailable(status)) continue;
        ASSERT_THAT(status, IsOk());
        --times;
      }
    };
    push(50);
    peer_->Kill(SIGKILL);
    push(500);  // While it dies,
    peer_->WaitForEnd();
    push(200);  // and after: into memory that only this mapping keeps.
    EXPECT_TRUE(AwaitFlushed(*remote));
  }
  StartPeer();
  PushAndVerify(kLatentPages);
  ReceiveAndVerify(kLatentPages);
}

TEST_F(NvlinkTransportTest, SourceKilledMidPush) {
  ASSERT_THAT(peer_->BeginPushing(export_->description(), kLatentPages), IsOk());
  peer_->Kill(SIGKILL);
  peer_->WaitForEnd();
  StartPeer();
  ReceiveAndVerify(kOtherPages);  // Whatever of the old one landed now would be found outside of them.
  PushAndVerify(kOtherPages);
}

TEST_F(NvlinkTransportTest, SourceStoppedMidPushAndKilledLater) {
  ASSERT_THAT(peer_->BeginPushing(export_->description(), kLatentPages), IsOk());
  peer_->Kill(SIGSTOP);
  std::unique_ptr<GpuPeer> stopped = std::move(peer_);
  StartPeer();
  // Beside it, pages for which its pages are no place; what it had enqueued may land there still.
  const uint64_t seed = 12;
  const PageSet few = {73'728, 100, 9};
  ASSERT_THAT(peer_->Fill(seed), IsOk());
  ASSERT_THAT(peer_->PushOnce(export_->description(), few), IsOk());
  stopped->Kill(SIGKILL);
  stopped->WaitForEnd();
  ReceiveAndVerify(kOtherPages);
  PushAndVerify(kOtherPages);
}

}  // namespace
}  // namespace tandem
