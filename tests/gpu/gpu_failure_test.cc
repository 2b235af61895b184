// The failure table's rows of docs/kv_protocol.md between two processes with hubs and protocol, checksums on: this one
// survives, its pages are all accounted for, and its next transfer with a new peer is right.

#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
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

constexpr uint64_t kPoolBytes = uint64_t{256} << 20;
using State = TestPages::State;

class GpuFailureTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    if (!TANDEM_WITH_UCX && std::string(GetParam()) != "nvlink") GTEST_SKIP() << "built without UCX";
    peer_device_ = gpus.peer_device;
    ASSERT_LE(kGpuLayout.pool_bytes() + kTestAreaBytes, kPoolBytes);
    ASSERT_OK_AND_ASSIGN(driver_, NewCudaDriver());
    ASSERT_OK_AND_ASSIGN(memory_, NewCudaMemory(0));
    ASSERT_OK_AND_ASSIGN(pool_, GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    ASSERT_THAT(FillPool(*pool_, 5), IsOk());
    StartPeer();
  }
  void StartPeer() {
    ASSERT_OK_AND_ASSIGN(peer_, GpuPeer::Start({.device = peer_device_, .pool_bytes = kPoolBytes}));
    ASSERT_THAT(peer_->Fill(6), IsOk());
  }
  std::unique_ptr<Transport> MakeTransport() {
    auto transports = MakeGpuTransports({GetParam()}, {driver_.get(), memory_.get(), pool_.get(), nullptr});
    EXPECT_THAT(transports, IsOk());
    return std::move((*transports)[0]);
  }
  std::unique_ptr<DecodeEnd> BecomeDecode() {
    DecodeEnd::Options options{.layout = kGpuLayout, .pool = pool_->base(), .memory = memory_.get()};
    options.frees_received = true;
    return std::make_unique<DecodeEnd>(MakeTransport(), options);
  }
  std::unique_ptr<PrefillEnd> BecomePrefill() {
    PrefillEnd::Options options;
    options.layout = kGpuLayout;
    options.pool = pool_->base();
    options.memory = memory_.get();
    return std::make_unique<PrefillEnd>(MakeTransport(), options);
  }
  static bool AwaitReceived(DecodeEnd& decode, size_t count) {
    return decode.Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return decode.received_.size() >= count; });
  }
  void StopSourceMidPush(DecodeEnd& decode);
  bool is_mapped() const { return std::string(GetParam()) == "nvlink"; }
  static void ExpectAllFree(DecodeEnd& decode) {
    EXPECT_TRUE(decode.Await(
        [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return decode.pages_.Count(State::kFree) == kGpuLayout.num_pages; }));
  }

  int peer_device_ = 0;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::unique_ptr<GpuPeer> peer_;
};

TEST_P(GpuFailureTest, SourceKilledMidPush) {
  const std::unique_ptr<DecodeEnd> decode = BecomeDecode();
  ASSERT_THAT(peer_->BeginHandingOver(decode->port(), Incarnation(200), GetParam()), IsOk());
  ASSERT_TRUE(AwaitReceived(*decode, 20));
  peer_->Kill(SIGKILL);
  peer_->WaitForEnd();
  ASSERT_TRUE(decode->Await([&] { return decode->lost_ == 1; }));
  ExpectAllFree(*decode);
  size_t before = 0;
  {
    absl::MutexLock lock(&decode->mu_);
    before = decode->received_.size();
  }
  StartPeer();
  ASSERT_THAT(peer_->BeginHandingOver(decode->port(), Incarnation(200), GetParam()), IsOk());
  EXPECT_TRUE(AwaitReceived(*decode, before + 20));
  absl::MutexLock lock(&decode->mu_);
  EXPECT_EQ(decode->damaged_, 0);
}

// Stops the source while pages are granted to it: those of its endless hand-over at least.
void GpuFailureTest::StopSourceMidPush(DecodeEnd& decode) {
  ASSERT_THAT(peer_->BeginHandingOver(decode.port(), Incarnation(200), GetParam()), IsOk());
  ASSERT_TRUE(AwaitReceived(decode, 20));
  peer_->Kill(SIGSTOP);
  ASSERT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
  absl::MutexLock lock(&decode.mu_);
  const int quarantined = decode.pages_.Count(State::kQuarantined);
  EXPECT_EQ(decode.pages_.Count(State::kFree) + quarantined, kGpuLayout.num_pages);
  // What it was granted it may still write to, unless only this side writes.
  EXPECT_EQ(decode.writes_over_, !is_mapped());
  if (is_mapped()) {
    EXPECT_GT(quarantined, 0);
  } else {
    EXPECT_EQ(quarantined, 0);
  }
}

TEST_P(GpuFailureTest, SourceStoppedMidPushAndKilledLater) {
  const std::unique_ptr<DecodeEnd> decode = BecomeDecode();
  ASSERT_NO_FATAL_FAILURE(StopSourceMidPush(*decode));
  std::unique_ptr<GpuPeer> stopped = std::move(peer_);
  StartPeer();
  ASSERT_THAT(peer_->BeginHandingOver(decode->port(), Incarnation(200), GetParam()), IsOk());
  size_t before = 0;
  {
    absl::MutexLock lock(&decode->mu_);
    before = decode->received_.size();
  }
  EXPECT_TRUE(AwaitReceived(*decode, before + 20));  // Beside the quarantined pages.
  stopped->Kill(SIGKILL);
  stopped->WaitForEnd();
  peer_->Kill(SIGKILL);
  peer_->WaitForEnd();
  ExpectAllFree(*decode);
  absl::MutexLock lock(&decode->mu_);
  EXPECT_EQ(decode->damaged_, 0);
}

TEST_P(GpuFailureTest, WhatASourceWritesAfterItWasStoppedHitsQuarantinedPagesOnly) {
  const std::unique_ptr<DecodeEnd> decode = BecomeDecode();
  ASSERT_NO_FATAL_FAILURE(StopSourceMidPush(*decode));
  std::vector<CopyRun> others;
  std::vector<uint32_t> page_of_run;
  int hellos = 0;
  {
    absl::MutexLock lock(&decode->mu_);
    decode->refuse_ = true;  // It gets no new link.
    hellos = decode->hellos_;
    for (PageIndex page = 0; page < kGpuLayout.num_pages; ++page) {
      if (decode->pages_.state(page) == State::kQuarantined) continue;
      others.push_back({0, page * kGpuLayout.page_bytes(), kGpuLayout.page_bytes()});
      page_of_run.push_back(static_cast<uint32_t>(page_of_run.size()));
    }
  }
  auto sums = [&] {
    PageSums of_others(others.size());
    EXPECT_THAT(memory_->AddSums(pool_->base(), PoolSide::kDestination, others, page_of_run, of_others), IsOk());
    return of_others;
  };
  const PageSums before = sums();
  peer_->Kill(SIGCONT);
  // It has noticed the loss and asks for a new link: its last writes have landed by then.
  ASSERT_TRUE(decode->Await([&] { return decode->hellos_ > hellos; }));
  EXPECT_EQ(sums(), before);
}

TEST_P(GpuFailureTest, DestinationKilledMidPush) {
  const std::unique_ptr<PrefillEnd> prefill = BecomePrefill();
  size_t started = 0;
  auto hand_over_until = [&](GpuPeer& peer, Incarnation decode, auto done) {
    const size_t first = started;
    while (!done()) {
      prefill->HandOver(decode, HandoverId(++started), kGpuHandoverTokens);
      // Two at a time.
      ASSERT_TRUE(
          prefill->Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return prefill->outcomes_.size() + 1 >= started; }));
      if (started - first == 20) peer.Kill(SIGKILL);
    }
  };
  ASSERT_OK_AND_ASSIGN(const GpuPeer::Listening first, peer_->BecomeDecode(GetParam()));
  prefill->LinkTo(first.port, first.incarnation);
  ASSERT_TRUE(prefill->AwaitUp());
  hand_over_until(*peer_, first.incarnation, [&] {
    absl::MutexLock lock(&prefill->mu_);
    return !prefill->state_.up;
  });
  peer_->WaitForEnd();
  // Each has its outcome: its pages are read no more.
  ASSERT_TRUE(prefill->Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return prefill->outcomes_.size() == started; }));
  EXPECT_EQ(prefill->outcomes_.back().kind, HandoverOutcome::Kind::kLost);
  StartPeer();
  ASSERT_OK_AND_ASSIGN(const GpuPeer::Listening second, peer_->BecomeDecode(GetParam()));
  prefill->LinkTo(second.port, second.incarnation);
  ASSERT_TRUE(prefill->AwaitUp());
  prefill->HandOver(second.incarnation, HandoverId(++started), kGpuHandoverTokens);
  ASSERT_TRUE(prefill->Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return prefill->outcomes_.size() == started; }));
  EXPECT_EQ(prefill->outcomes_.back().kind, HandoverOutcome::Kind::kAcked);
}

INSTANTIATE_TEST_SUITE_P(Transport, GpuFailureTest, testing::Values("nvlink", "ucx_staged"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem
