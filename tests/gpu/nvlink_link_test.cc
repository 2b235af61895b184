// Hubs and protocol over pools in GPU memory. With two devices that reach each other, prefill's is on one and decode's
// on the other.

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/current_device.h"
#include "kvtransfer/nvlink/nvlink_transport.h"
#include "kvtransfer/self_test.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/support/link_ends.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

class NvlinkLinkTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    ASSERT_OK_AND_ASSIGN(driver_, NewCudaDriver());
    ASSERT_OK_AND_ASSIGN(source_memory_, NewCudaMemory(0));
    ASSERT_OK_AND_ASSIGN(destination_memory_, NewCudaMemory(gpus.peer_device));
    ASSERT_OK_AND_ASSIGN(source_, GpuPool::Create(*driver_, 0, LinkTestLayout(8).pool_bytes(), PoolReach::kHost));
    ASSERT_OK_AND_ASSIGN(destination_,
                         GpuPool::Create(*driver_, gpus.peer_device, LinkTestLayout(16).pool_bytes() + kTestAreaBytes,
                                         PoolReach::kHost));
  }
  std::unique_ptr<Transport> MakeTransport(const GpuPool& pool) {
    auto transport = NvlinkTransport::Create(*driver_, {.device = pool.device(), .pool = &pool});
    EXPECT_THAT(transport, IsOk());
    return *std::move(transport);
  }
  PrefillEnd::Options PrefillOptions() {
    return {.layout = LinkTestLayout(8), .pool = source_->base(), .memory = source_memory_.get()};
  }
  DecodeEnd::Options DecodeOptions() { return {.pool = destination_->base(), .memory = destination_memory_.get()}; }
  void TransferAndCompare(PrefillEnd& prefill, DecodeEnd& decode) {
    ASSERT_THAT(Copy(source_->base(), prefill.memory_.data(), prefill.memory_.size(), 0), IsOk());
    const std::vector<CopyRun> runs = TransferFortyTokens(prefill, decode, 8);
    ASSERT_FALSE(runs.empty());
    EXPECT_EQ(prefill.state_.transport, "nvlink");
    std::vector<uint8_t> arrived(LinkTestLayout(16).pool_bytes());
    ASSERT_THAT(Copy(arrived.data(), destination_->base(), arrived.size(), destination_->device()), IsOk());
    for (const CopyRun& run : runs) {
      ASSERT_TRUE(
          std::equal(&arrived[run.destination], &arrived[run.destination] + run.bytes, &prefill.memory_[run.source]));
    }
  }
  static absl::Status Copy(uint8_t* to, const uint8_t* from, size_t bytes, int device) {
    const CurrentDevice current(device);
    return CudaStatus(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
  }

  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<GpuPool> source_, destination_;
  std::unique_ptr<PoolMemory> source_memory_, destination_memory_;
};

TEST_F(NvlinkLinkTest, MovesKvBetweenUnlikePages) {
  DecodeEnd decode(MakeTransport(*destination_), DecodeOptions());
  PrefillEnd prefill(MakeTransport(*source_), PrefillOptions());
  TransferAndCompare(prefill, decode);
}

TEST_F(NvlinkLinkTest, ALostLinkIsMadeAnewAndMovesKvAgain) {
  {
    DecodeEnd decode(MakeTransport(*destination_), DecodeOptions());
    PrefillEnd prefill(MakeTransport(*source_), PrefillOptions());
    prefill.LinkTo(decode.port());
    ASSERT_TRUE(prefill.AwaitUp());
  }
  DecodeEnd decode(MakeTransport(*destination_), DecodeOptions());
  PrefillEnd prefill(MakeTransport(*source_), PrefillOptions());
  TransferAndCompare(prefill, decode);
}

TEST_F(NvlinkLinkTest, ChecksumCatchesAFlippedByte) {
  DecodeEnd decode(MakeTransport(*destination_), DecodeOptions());
  PrefillEnd::Options options = PrefillOptions();
  options.faults.flip_byte_every = 1;
  PrefillEnd prefill(MakeTransport(*source_), options);
  ASSERT_THAT(Copy(source_->base(), prefill.memory_.data(), prefill.memory_.size(), 0), IsOk());
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.hub_->Start(Incarnation(200), HandoverId(9), std::vector<TokenId>(40, 1), {3, 10, 17, 24, 31});
  prefill.hub_->LayersReady(Incarnation(200), HandoverId(9), {0, 40}, {0, 3});
  prefill.hub_->Finish(Incarnation(200), HandoverId(9), 1);
  EXPECT_TRUE(decode.Await([&] { return decode.damaged_ == 1; }));
  EXPECT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kAborted);
}

TEST_F(NvlinkLinkTest, ALinkFarUnderItsExpectedRateIsRefused) {
  DecodeEnd decode(MakeTransport(*destination_), DecodeOptions());
  PrefillEnd::Options options = PrefillOptions();
  options.expected_rates = {{"nvlink", 1e18}};
  PrefillEnd prefill(MakeTransport(*source_), options);
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return !prefill.state_.error.empty(); }));
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_THAT(prefill.state_.error, HasSubstr("nvlink: too slow: "));
}

}  // namespace
}  // namespace tandem
