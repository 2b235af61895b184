// UCX between the GPU pools of two processes.

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/gpu_transports.h"
#include "kvtransfer/self_test.h"
#include "tests/gpu/gpu_peer.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/gpu/pool_check.h"
#include "tests/support/link_ends.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kPoolBytes = uint64_t{256} << 20;
constexpr absl::Duration kPatience = absl::Seconds(20);

class GpuUcxTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    if (!TANDEM_WITH_UCX) GTEST_SKIP() << "built without UCX";
    has_two_gpus_ = gpus.peer_device != 0;
    ASSERT_OK_AND_ASSIGN(driver_, NewCudaDriver());
    ASSERT_OK_AND_ASSIGN(memory_, NewCudaMemory(0));
    ASSERT_OK_AND_ASSIGN(pool_, GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    ASSERT_OK_AND_ASSIGN(peer_, GpuPeer::Start({.device = gpus.peer_device, .pool_bytes = kPoolBytes}));
  }
  std::vector<std::unique_ptr<Transport>> MakeTransports(const std::vector<std::string>& names) {
    auto transports = MakeGpuTransports(names, {driver_.get(), memory_.get(), pool_.get(), nullptr});
    EXPECT_THAT(transports, IsOk());
    return *std::move(transports);
  }
  static absl::Status AwaitFlushed(Transport& transport, RemotePool& pool) {
    const absl::Time deadline = Clock::Real().Now() + kPatience;
    while (Clock::Real().Now() < deadline) {
      transport.Progress();
      absl::StatusOr<bool> flushed = pool.PollFlushed();
      if (!flushed.ok()) return flushed.status();
      if (*flushed) return absl::OkStatus();
    }
    return absl::DeadlineExceededError("the writes do not end");
  }
  void MoveAndVerify(const std::string& kind, const std::string& path) {
    const uint64_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    std::unique_ptr<PoolBuffer> reached;
    DeviceBytes source(*pool_);
    if (kind == "ucx_reached") {
      ASSERT_OK_AND_ASSIGN(reached, memory_->Allocate(kPoolBytes, PoolMemory::Place::kPool));
      source.base = reached->base();
    }
    ASSERT_THAT(FillPool(source, seed), IsOk());
    const auto transports = MakeTransports({kind == "ucx_reached" ? "ucx" : kind});
    for (const PageSet& set : {PageSet{73'728, 500, 1}, PageSet{1'152, 20'000, 2}, PageSet{20 << 20, 3, 3}}) {
      SCOPED_TRACE(set.page_bytes);
      ASSERT_OK_AND_ASSIGN(const PoolExport exported, peer_->ExportByUcx(kind));
      ASSERT_OK_AND_ASSIGN(auto remote, transports[0]->Open(exported));
      const std::vector<CopyRun> runs = MakeRuns(set, kPoolBytes);
      auto sums = std::make_shared<PageSums>(1);
      ASSERT_THAT(remote->Write({.source_base = source.base,
                                 .runs = runs,
                                 .sums = sums,
                                 .page_of_run = std::vector<uint32_t>(runs.size(), 0)}),
                  IsOk());
      ASSERT_THAT(AwaitFlushed(*transports[0], *remote), IsOk());
      EXPECT_THAT(peer_->VerifyByUcx(set, seed), IsOk());
      if (has_two_gpus_) {
        EXPECT_THAT(remote->path(), HasSubstr(path));
      }
      PageSums wanted(1);
      ASSERT_THAT(memory_->AddSums(source.base, PoolSide::kSource, runs, std::vector<uint32_t>(runs.size(), 0), wanted),
                  IsOk());
      EXPECT_EQ(*sums, wanted);
    }
  }

  bool has_two_gpus_ = false;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::unique_ptr<GpuPeer> peer_;
};

TEST_F(GpuUcxTest, PutsIntoMemoryThatItReaches) { MoveAndVerify("ucx_reached", "cuda_ipc"); }
TEST_F(GpuUcxTest, MovesPoolsThatItDoesNotReachThroughBuffersOnGpus) { MoveAndVerify("ucx_staged", "cuda_ipc"); }
TEST_F(GpuUcxTest, MovesPoolsThroughBuffersOnHosts) { MoveAndVerify("ucx_host_staged", "tcp"); }

TEST_F(GpuUcxTest, APoolThatItDoesNotReachIsAnErrorAndNotASlowWay) {
  const auto transports = MakeTransports({"ucx"});
  absl::StatusOr<PoolExport> exported = peer_->ExportByUcx("ucx");
  absl::Status status = exported.status();
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<RemotePool>> remote = transports[0]->Open(*exported);
    status = remote.status();
    if (status.ok()) status = (*remote)->Write({.source_base = pool_->base(), .runs = {{0, 0, 1 << 20}}});
    if (status.ok()) status = AwaitFlushed(*transports[0], **remote);
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("ucp_")));
}

TEST_F(GpuUcxTest, ALinkTakesTheNextCandidateWhereTheBestFails) {
  // In one process, whose GPUs UCX joins through the host only.
  ASSERT_OK_AND_ASSIGN(auto destination, GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
  auto of_destination = MakeGpuTransports(kGpuTransports, {driver_.get(), memory_.get(), destination.get(), nullptr});
  ASSERT_THAT(of_destination, IsOk());
  DecodeEnd::Options decode_options{.layout = kGpuLayout, .pool = destination->base(), .memory = memory_.get()};
  DecodeEnd decode(*std::move(of_destination), decode_options);
  PrefillEnd::Options options;
  options.layout = kGpuLayout;
  options.pool = pool_->base();
  options.memory = memory_.get();
  options.expected_rates = {{"nvlink", 1e18}};
  PrefillEnd prefill(MakeTransports(kGpuTransports), options);
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.HandOver(Incarnation(200), HandoverId(1), 300);
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kAcked);
  EXPECT_THAT(prefill.state_.transport, HasSubstr("ucx_"));  // One of the staged ones.
  EXPECT_THAT(prefill.state_.error, AllOf(HasSubstr("nvlink: too slow"), HasSubstr("; ucx: ")));
}

}  // namespace
}  // namespace tandem
