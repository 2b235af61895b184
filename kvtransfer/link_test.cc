// Sender and receiver hubs together, over real sockets and memory of this process.

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/event_loop.h"
#include "kvtransfer/frame_socket.h"
#include "kvtransfer/hello.h"
#include "kvtransfer/loopback/loopback_transport.h"
#include "kvtransfer/self_test.h"
#include "kvtransfer/shm/shm_transport.h"
#include "kvtransfer/transport_factory.h"
#if TANDEM_WITH_UCX
#include "kvtransfer/ucx/ucx_staged_transport.h"
#endif
#include "kvtransfer/wire.h"
#include "tests/support/link_ends.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(LinkTest, MovesKvOverLoopback) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport());
  TransferAndCompare(prefill, decode, 16);
}

TEST(LinkTest, MovesKvOverSharedMemoryBetweenUnlikePages) {
  ASSERT_OK_AND_ASSIGN(auto shm, ShmPool::Create(LinkTestLayout(16).pool_bytes() + kTestAreaBytes));
  DecodeEnd decode(NewShmTransport(shm.get()), {.pool = shm->base()});
  PrefillEnd prefill(NewShmTransport(nullptr), With([](auto& options) { options.layout = LinkTestLayout(8); }));
  TransferAndCompare(prefill, decode, 8);
}

std::unique_ptr<Transport> UcxTransportOrNull() {
  auto transports = MakeTransports({"ucx"}, nullptr);
  return transports.ok() ? std::move((*transports)[0]) : nullptr;
}

TEST(LinkTest, MovesKvOverUcx) {
  if (TransportVersion().empty()) GTEST_SKIP() << "built without UCX";
  DecodeEnd decode(UcxTransportOrNull());
  PrefillEnd prefill(UcxTransportOrNull(), With([](auto& options) { options.layout = LinkTestLayout(8); }));
  TransferAndCompare(prefill, decode, 8);
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_THAT(prefill.state_.path, HasSubstr("tcp/"));
}

#if TANDEM_WITH_UCX
std::unique_ptr<Transport> StagedTransport(uint64_t chunk_bytes, int buffers) {
  auto transport = NewUcxStagedTransport({.chunk_bytes = chunk_bytes, .buffers = buffers});
  EXPECT_THAT(transport, IsOk());
  return *std::move(transport);
}

TEST(LinkTest, MovesKvOverUcxInChunks) {
  DecodeEnd decode(StagedTransport(1 << 20, 3));
  PrefillEnd prefill(StagedTransport(1 << 20, 3), With([](auto& options) { options.layout = LinkTestLayout(8); }));
  TransferAndCompare(prefill, decode, 8);
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_THAT(prefill.state_.path, HasSubstr("tcp/"));
}

TEST(LinkTest, ATransferLargerThanAnyBufferIsServedInChunks) {
  ASSERT_OK_AND_ASSIGN(auto writer, NewUcxStagedTransport({.chunk_bytes = 1000, .buffers = 5}));
  std::vector<uint8_t> source(20'000), destination(20'000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint8_t>(i * 7 + i / 256);
  std::unique_ptr<Transport> owner = StagedTransport(128, 2);
  ASSERT_OK_AND_ASSIGN(auto exported, owner->Export(destination.data(), destination.size()));
  ASSERT_OK_AND_ASSIGN(auto remote, writer->Open(exported->description()));
  ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 10'000, 9'999}, {9'999, 0, 7}, {50, 60, 0}}}),
              IsOk());
  ASSERT_THAT(remote->Write({.source_base = source.data() + 16, .runs = {{1, 7, 9'993}}}), IsOk());
  const absl::Time deadline = Clock::Real().Now() + kLinkPatience;
  for (bool flushed = false; !flushed;) {
    ASSERT_LT(Clock::Real().Now(), deadline);
    owner->Progress();
    ASSERT_OK_AND_ASSIGN(flushed, remote->PollFlushed());
  }
  std::vector<uint8_t> wanted(20'000);
  std::copy_n(&source[0], 9'999, &wanted[10'000]);
  std::copy_n(&source[9'999], 7, &wanted[0]);
  std::copy_n(&source[17], 9'993, &wanted[7]);
  EXPECT_EQ(destination, wanted);
}

TEST(LinkTest, AWriteOfAnyNumbersThatLeavesThePoolIsRefused) {
  constexpr int64_t kFar = std::numeric_limits<int64_t>::max();
  for (const CopyRun& run : {CopyRun{0, 96, 64}, CopyRun{0, kFar - 8, 64}, CopyRun{0, kFar, kFar}, CopyRun{0, -16, 16},
                             CopyRun{0, 0, -1}, CopyRun{0, 129, 0}}) {
    EXPECT_THAT(CheckRuns({run}, 128), StatusIs(absl::StatusCode::kOutOfRange)) << run.destination << " " << run.bytes;
  }
  EXPECT_THAT(CheckRuns({{0, 0, 128}, {0, 128, 0}}, 128), IsOk());
}

TEST(LinkTest, AChunkThatLeavesThePoolIsRefusedByItsOwner) {
  std::unique_ptr<Transport> owner = StagedTransport(4096, 2), writer = StagedTransport(4096, 2);
  std::vector<uint8_t> memory(256), source(64, 1);
  ASSERT_OK_AND_ASSIGN(auto exported, owner->Export(memory.data(), 128));
  PoolExport lie = exported->description();
  lie.size_bytes = 256;
  ASSERT_OK_AND_ASSIGN(auto remote, writer->Open(lie));
  ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 96, 64}}}), IsOk());
  const absl::Time deadline = Clock::Real().Now() + kLinkPatience;
  absl::StatusOr<bool> flushed = false;
  while (flushed.ok() && !*flushed && Clock::Real().Now() < deadline) {
    owner->Progress();
    flushed = remote->PollFlushed();
  }
  EXPECT_THAT(flushed, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("did not take a chunk")));
  EXPECT_EQ(memory, std::vector<uint8_t>(256));
}

// Waits as link threads do, but for a tick.
bool SleepUntilWoken(absl::Span<Transport* const> transports, absl::Duration tick) {
  std::vector<pollfd> descriptors;
  for (Transport* transport : transports) {
    if (!transport->PrepareToSleep()) return true;
    descriptors.push_back({transport->event_fd(), POLLIN, 0});
  }
  return poll(descriptors.data(), descriptors.size(), static_cast<int>(absl::ToInt64Milliseconds(tick))) > 0;
}

TEST(LinkTest, ChunksGoOnWithoutATickToWakeThem) {
  for (int buffers : {1, 3}) {
    std::unique_ptr<Transport> owner = StagedTransport(64 << 10, buffers), writer = StagedTransport(64 << 10, buffers);
    std::vector<uint8_t> memory(32 << 20), source(32 << 20, 1);
    ASSERT_OK_AND_ASSIGN(auto exported, owner->Export(memory.data(), memory.size()));
    ASSERT_OK_AND_ASSIGN(auto remote, writer->Open(exported->description()));
    ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 0, 32 << 20}}}), IsOk());
    while (true) {
      owner->Progress();
      writer->Progress();
      if (memory.back() != 0) break;
      ASSERT_TRUE(SleepUntilWoken({owner.get(), writer.get()}, kLinkPatience)) << buffers;
    }
  }
}

TEST(LinkTest, AWriterThatEndsInTheMidstOfAChunkLeavesItsOwnerAlive) {
  for (int round = 0; round < 20; ++round) {
    std::unique_ptr<Transport> owner = StagedTransport(1 << 20, 3), writer = StagedTransport(1 << 20, 3);
    std::vector<uint8_t> memory(16 << 20), source(16 << 20, 1);
    ASSERT_OK_AND_ASSIGN(auto exported, owner->Export(memory.data(), memory.size()));
    ASSERT_OK_AND_ASSIGN(auto remote, writer->Open(exported->description()));
    ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 0, 16 << 20}}}), IsOk());
    // In a different state of its chunks each time.
    for (int turn = 0; turn < 5 * round; ++turn) {
      owner->Progress();
      writer->Progress();
    }
    remote.reset();
    for (int turn = 0; turn < 100; ++turn) {
      owner->Progress();
      writer->Progress();
    }
    // The same owner serves another one.
    ASSERT_OK_AND_ASSIGN(auto next, owner->Export(memory.data(), memory.size()));
    ASSERT_OK_AND_ASSIGN(remote, writer->Open(next->description()));
    std::fill(memory.begin(), memory.end(), 0);
    ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 0, 16 << 20}}}), IsOk());
    const absl::Time deadline = Clock::Real().Now() + kLinkPatience;
    for (bool flushed = false; !flushed;) {
      ASSERT_LT(Clock::Real().Now(), deadline);
      owner->Progress();
      ASSERT_OK_AND_ASSIGN(flushed, remote->PollFlushed());
    }
    EXPECT_EQ(memory, source);
  }
}

TEST(LinkTest, AChunkUnderWayEndsWithItsOwnersSide) {
  std::unique_ptr<Transport> owner = StagedTransport(4096, 2), writer = StagedTransport(4096, 2);
  std::vector<uint8_t> memory(1 << 20), source(1 << 20, 1);
  ASSERT_OK_AND_ASSIGN(auto exported, owner->Export(memory.data(), memory.size()));
  EXPECT_TRUE(exported->revocable());
  ASSERT_OK_AND_ASSIGN(auto remote, writer->Open(exported->description()));
  ASSERT_THAT(remote->Write({.source_base = source.data(), .runs = {{0, 0, 1 << 20}}}), IsOk());
  const absl::Time deadline = Clock::Real().Now() + kLinkPatience;
  while (memory[0] == 0) {
    ASSERT_LT(Clock::Real().Now(), deadline);
    writer->Progress();
    owner->Progress();
  }
  exported.reset();
  const std::vector<uint8_t> then = memory;
  EXPECT_EQ(then.back(), 0) << "all of it was there already";
  absl::StatusOr<bool> flushed = false;
  while (flushed.ok() && !*flushed && Clock::Real().Now() < deadline) {
    owner->Progress();
    flushed = remote->PollFlushed();
  }
  EXPECT_THAT(flushed, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(memory, then);
}
#endif

TEST(LinkTest, OverUcxALostLinkNeedsNoProofOfDeath) {
  if (TransportVersion().empty()) GTEST_SKIP() << "built without UCX";
  DecodeEnd decode(UcxTransportOrNull());
  PrefillEnd prefill(UcxTransportOrNull(), With([](auto& options) { options.layout = LinkTestLayout(8); }));
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.hub_->SetPeers({});
  ASSERT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
  EXPECT_TRUE(decode.writes_over_);
}

TEST(LinkTest, OverSharedMemoryOnlyAProofOfDeathEndsTheWritesOfALostLink) {
  ASSERT_OK_AND_ASSIGN(auto shm, ShmPool::Create(LinkTestLayout(16).pool_bytes() + kTestAreaBytes));
  DecodeEnd decode(NewShmTransport(shm.get()), {.pool = shm->base()});
  PrefillEnd prefill(NewShmTransport(nullptr), With([](auto& options) { options.layout = LinkTestLayout(8); }));
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.hub_->SetPeers({});
  ASSERT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
  EXPECT_FALSE(decode.writes_over_);
  // Made anew, the link says that nothing of the old one is in flight.
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  EXPECT_TRUE(decode.Await([&] { return decode.hello_.writes_over; }));
}

TEST(LinkTest, AnOutcomeOfALostLinkComesAfterItsLastWrite) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), With([](auto& options) { options.faults.late_write_ms = 100; }));
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  const std::vector<PageIndex> pages = {0, 1, 2};
  prefill.hub_->Start(Incarnation(200), HandoverId(9), std::vector<TokenId>(40, 1), pages);
  prefill.hub_->LayersReady(Incarnation(200), HandoverId(9), {0, 40}, {0, 3});
  prefill.hub_->Finish(Incarnation(200), HandoverId(9), 1);
  ASSERT_TRUE(decode.Await([&] { return decode.grants_ == 1; }));
  decode.hub_->Stop();  // The Grant goes out before the connection ends, so prefill has begun to write.
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kLost);
  // What landed lies in the granted pages, in full.
  for (const CopyRun& run :
       PlanTransfer(LinkTestLayout(16), {pages}, LinkTestLayout(16), {decode.granted_}, {0, 40}, {0, 3})) {
    ASSERT_EQ(
        std::vector<uint8_t>(prefill.memory_.data() + run.source, prefill.memory_.data() + run.source + run.bytes),
        std::vector<uint8_t>(decode.base_ + run.destination, decode.base_ + run.destination + run.bytes));
  }
}

TEST(LinkTest, ChecksumsNeedRowsThatAGpuSums) {
  KvLayout layout = LinkTestLayout(16);
  layout.head_dim = 6;  // 12 bytes.
  HelloMessage prefill = LinkTestHello("prefill-0", Incarnation(1), layout);
  const HelloMessage decode = LinkTestHello("decode-0", Incarnation(2), layout);
  EXPECT_THAT(CheckHellos(prefill, decode),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("multiple of 16 bytes, not of 12")));
  prefill.checksums = false;
  EXPECT_THAT(CheckHellos(prefill, decode), IsOk());
}

TEST(LinkTest, ADecodeWorkerOfAnotherModelIsNoPeer) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), With([](auto& options) { options.model_fingerprint = 77; }));
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return absl::StrContains(prefill.state_.error, "model fingerprint"); }));
}

TEST(LinkTest, DelaysAndDuplicatesChangeNothing) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), With([](auto& options) {
                       options.faults.duplicate_write_every = 2;
                       options.faults.delay_polls = 50;
                     }));
  TransferAndCompare(prefill, decode, 16);
}

void ExpectDamageIsSeen(const TransferFaults& faults) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), With([&](auto& options) { options.faults = faults; }));
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  std::vector<PageIndex> pages = {0, 1, 2};
  prefill.hub_->Start(Incarnation(200), HandoverId(9), std::vector<TokenId>(40, 1), pages);
  prefill.hub_->LayersReady(Incarnation(200), HandoverId(9), {0, 40}, {0, 3});
  prefill.hub_->Finish(Incarnation(200), HandoverId(9), 1);
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kAborted);
  EXPECT_EQ(prefill.outcomes_[0].error_reason, ErrorReason::kChecksumMismatch);
  EXPECT_TRUE(decode.Await([&] { return decode.damaged_ == 1; }));
  EXPECT_TRUE(decode.received_.empty());
}

TEST(LinkTest, ChecksumCatchesAFlippedByte) { ExpectDamageIsSeen({.flip_byte_every = 1}); }
TEST(LinkTest, ChecksumCatchesADroppedWrite) { ExpectDamageIsSeen({.drop_write_every = 1}); }

TEST(LinkTest, AHandOverWithoutALinkHasOneOutcome) {
  PrefillEnd prefill(NewLoopbackTransport());
  for (uint64_t id : {1, 2}) prefill.HandOver(Incarnation(200), HandoverId(id), 40);
  EXPECT_TRUE(prefill.Await([&] { return prefill.outcomes_.size() >= 2; }));
  prefill.hub_->Stop();  // All that was posted has run.
  ASSERT_EQ(prefill.outcomes_.size(), 2);
  for (uint64_t id : {1, 2}) {
    EXPECT_EQ(prefill.outcomes_[id - 1].handover, HandoverId(id));
    EXPECT_EQ(prefill.outcomes_[id - 1].kind, HandoverOutcome::Kind::kLost);
  }
}

TEST(LinkTest, LosingTheDecodeWorkerEndsHandovers) {
  auto decode = std::make_unique<DecodeEnd>(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport());
  prefill.LinkTo(decode->port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.hub_->Start(Incarnation(200), HandoverId(9), std::vector<TokenId>(40, 1), {0, 1, 2});
  decode.reset();
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kLost);
  EXPECT_TRUE(prefill.Await([&] { return !prefill.state_.up; }));
}

TEST(LinkTest, LosingThePrefillWorkerIsReported) {
  DecodeEnd decode(NewLoopbackTransport());
  auto prefill = std::make_unique<PrefillEnd>(NewLoopbackTransport());
  prefill->LinkTo(decode.port());
  ASSERT_TRUE(prefill->AwaitUp());
  prefill.reset();
  EXPECT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
}

TEST(LinkTest, LinksOfAWorkerThatLeavesAsItWasAskedToEndWithoutAnAlarm) {
  DecodeEnd decode(NewLoopbackTransport());
  auto prefill = std::make_unique<PrefillEnd>(NewLoopbackTransport());
  prefill->LinkTo(decode.port());
  ASSERT_TRUE(prefill->AwaitUp());
  decode.hub_->SetLeaving();
  testing::internal::CaptureStderr();
  prefill.reset();
  EXPECT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
  decode.hub_->Stop();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(testing::HasSubstr("INFO"), testing::HasSubstr("link closed"),
                             testing::Not(testing::HasSubstr("WARNING"))));
}

TEST(LinkTest, RefusalIsReportedWithItsReason) {
  DecodeEnd decode(NewLoopbackTransport());
  {
    absl::MutexLock lock(&decode.mu_);
    decode.refuse_ = true;
  }
  PrefillEnd prefill(NewLoopbackTransport());
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return prefill.state_.error == "refused: not you"; }));
}

// No memory moves a million terabytes a second.
constexpr double kImpossibleRate = 1e18;

TEST(LinkTest, ALinkFarUnderItsExpectedRateIsRefusedWithBothFigures) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(),
                     With([](auto& options) { options.expected_rates["loopback"] = kImpossibleRate; }));
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return !prefill.state_.error.empty(); }));
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_FALSE(prefill.state_.up);
  EXPECT_THAT(prefill.state_.error, AllOf(HasSubstr("loopback: too slow: "), HasSubstr("under 0.5 of the 1e+09 GB/s")));
}

TEST(LinkTest, ASlowLinkIsMadeWhereItIsAllowed) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), With([](auto& options) {
                       options.expected_rates["loopback"] = kImpossibleRate;
                       options.minimum_share = 0;
                     }));
  TransferAndCompare(prefill, decode, 16);
}

TEST(LinkTest, AfterASlowTransportTheNextOneIsTried) {
  ASSERT_OK_AND_ASSIGN(auto shm, ShmPool::Create(LinkTestLayout(16).pool_bytes() + kTestAreaBytes));
  auto both = [](const ShmPool* pool) {
    std::vector<std::unique_ptr<Transport>> transports = OneTransport(NewLoopbackTransport());
    transports.push_back(NewShmTransport(pool));
    return transports;
  };
  DecodeEnd decode(both(shm.get()), {.pool = shm->base()});
  PrefillEnd prefill(both(nullptr), With([](auto& options) { options.expected_rates["loopback"] = kImpossibleRate; }));
  TransferAndCompare(prefill, decode, 16);
  EXPECT_EQ(prefill.state_.transport, "shm");
}

TEST(LinkTest, OtherTransportsRatesJudgeNothing) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(),
                     With([](auto& options) { options.expected_rates["shm"] = kImpossibleRate; }));
  TransferAndCompare(prefill, decode, 16);
}

// A peer that says by hand what a prefill worker would, on the test's thread.
class RawPeer {
 public:
  explicit RawPeer(int port) : loop_(*EventLoop::Create()) {
    auto fd = FrameSocket::Connect("127.0.0.1:" + std::to_string(port));
    EXPECT_THAT(fd, IsOk());
    socket_ =
        std::make_unique<FrameSocket>(*loop_, *fd,
                                      FrameSocket::Callbacks{[this](absl::string_view payload) { OnFrame(payload); },
                                                             [this](const std::string&) {
                                                               closed_ = true;
                                                               loop_->Stop();
                                                             }},
                                      /*tls=*/nullptr);
    socket_->Send(EncodeLinkMessage(LinkTestHello("prefill-0", Incarnation(100), LinkTestLayout(16))));
  }
  // Claims a passed test of `transport` once asked to test, and waits until the other side closes.
  bool ClaimsAndIsClosed(const std::string& transport) {
    claim_ = transport;
    const absl::Time deadline = Clock::Real().Now() + kLinkPatience;
    loop_->Run(
        absl::Milliseconds(10),
        [&] {
          if (Clock::Real().Now() > deadline) loop_->Stop();
        },
        [] { return false; });
    return closed_;
  }
  bool was_ready() const { return was_ready_; }

 private:
  void OnFrame(absl::string_view payload) {
    ASSERT_OK_AND_ASSIGN(LinkMessage message, DecodeLinkMessage(payload));
    if (std::holds_alternative<HelloMessage>(message)) {
      socket_->Send(EncodeLinkMessage(SelfTestDoneMessage{.transport = claim_}));
    } else if (std::holds_alternative<LinkReadyMessage>(message)) {
      was_ready_ = true;
    }
  }
  const std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<FrameSocket> socket_;
  std::string claim_;
  bool closed_ = false, was_ready_ = false;
};

TEST(LinkTest, ATransportThatWasNotOfferedMakesNoLink) {
  DecodeEnd decode(NewLoopbackTransport());
  RawPeer peer(decode.port());
  EXPECT_TRUE(peer.ClaimsAndIsClosed("carrier-pigeon"));
  EXPECT_FALSE(peer.was_ready());
}

TEST(LinkTest, StartingOnADownLinkFailsAtOnce) {
  PrefillEnd prefill(NewLoopbackTransport());
  prefill.hub_->Start(Incarnation(200), HandoverId(9), {1}, {0});
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kLost);
}

}  // namespace
}  // namespace tandem
