// Sender and receiver hubs together, over real sockets and memory of this process.

#include <unistd.h>

#include <map>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/event_loop.h"
#include "kvtransfer/frame_socket.h"
#include "kvtransfer/kv_receiver.h"
#include "kvtransfer/loopback/loopback_transport.h"
#include "kvtransfer/peer_process.h"
#include "kvtransfer/receiver_hub.h"
#include "kvtransfer/self_test.h"
#include "kvtransfer/sender_hub.h"
#include "kvtransfer/shm/shm_transport.h"
#include "kvtransfer/transport_factory.h"
#include "kvtransfer/wire.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

KvLayout TestLayout(int page_tokens) {
  return {.num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .page_tokens = page_tokens, .num_pages = 64};
}

HelloMessage Hello(const std::string& worker, uint64_t incarnation, int page_tokens) {
  HelloMessage hello;
  hello.worker_id = worker;
  hello.incarnation = Incarnation(incarnation);
  hello.host_boot_id = HostId();
  hello.pid = getpid();
  hello.layout = TestLayout(page_tokens);
  hello.model_fingerprint = 1;
  hello.checksums = true;
  return hello;
}

class BumpPages final : public HandoverPages {
 public:
  bool HasRoom(int) const override { return true; }
  std::vector<PageIndex> AcquireHeld(absl::Span<const TokenId>) override { return {}; }
  std::optional<std::vector<PageIndex>> AllocateGranted(int count) override {
    std::vector<PageIndex> pages;
    for (int i = 0; i < count; ++i) pages.push_back(next_++ % 64);
    return pages;
  }
  void MarkCommitted(absl::Span<const PageIndex>) override {}
  void Quarantine(absl::Span<const PageIndex>) override {}
  void Free(absl::Span<const PageIndex>) override {}

 private:
  PageIndex next_ = 5;
};

// The decode side: a receiver driven straight from the link thread.
class DecodeEnd final : public ReceiverEvents {
 public:
  explicit DecodeEnd(std::unique_ptr<Transport> transport, const ShmPool* shm = nullptr) {
    KvLayout layout = TestLayout(16);
    if (shm == nullptr) memory_.resize(layout.pool_bytes() + kTestAreaBytes);
    base_ = shm == nullptr ? memory_.data() : shm->base();
    receiver_ = std::make_unique<KvReceiver>(KvReceiver::Options{}, layout, base_, pages_);
    std::vector<std::unique_ptr<Transport>> transports;
    transports.push_back(std::move(transport));
    auto hub = ReceiverHub::Create({.hello = Hello("decode-0", 200, 16), .listen = "127.0.0.1:0", .pool = base_},
                                   std::move(transports), *this);
    EXPECT_THAT(hub, IsOk());
    absl::MutexLock lock(&mu_);
    hub_ = *std::move(hub);
    hub_->Start();
  }
  ~DecodeEnd() override { hub_->Stop(); }

  void OnHello(int64_t connection, const HelloMessage& hello) override {
    absl::MutexLock lock(&mu_);
    hello_ = hello;
    if (refuse_) {
      hub_->Refuse(connection, {.reason = "not you"});
    } else {
      hub_->Accept(connection);
    }
  }
  void OnPeerUp(const HelloMessage& hello) override {
    absl::MutexLock lock(&mu_);
    receiver_->OnPeerUp(hello.incarnation, hello.layout, hello.checksums);
  }
  void OnPeerLost(Incarnation peer, bool writes_over) override {
    absl::MutexLock lock(&mu_);
    receiver_->OnPeerLost(peer, writes_over);
    writes_over_ = writes_over;
    ++lost_;
  }
  void OnWritesOver(Incarnation) override {}
  void OnMessage(Incarnation peer, const LinkMessage& message) override {
    absl::MutexLock lock(&mu_);
    if (const auto* offer = std::get_if<OfferMessage>(&message)) {
      receiver_->Expect(offer->handover, offer->tokens);
      receiver_->OnOffer(peer, *offer, absl::UnixEpoch());
    } else if (const auto* commit = std::get_if<CommitMessage>(&message)) {
      auto received = receiver_->OnCommit(peer, *commit);
      if (!received.ok()) ++damaged_;
      if (received.ok() && received->has_value()) received_.push_back(**received);
    } else if (const auto* abort = std::get_if<AbortMessage>(&message)) {
      receiver_->OnAbort(peer, *abort);
    } else if (const auto* done = std::get_if<AbortDoneMessage>(&message)) {
      receiver_->OnAbortDone(peer, *done);
    }
    for (auto& [to, answer] : receiver_->TakeMessages()) {
      if (const auto* grant = std::get_if<GrantMessage>(&answer)) {
        granted_ = grant->pages;
        ++grants_;
      }
      hub_->Send(to, answer);
    }
  }

  template <typename Predicate>
  bool Await(Predicate predicate) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&predicate), kPatience);
  }
  int port() { return hub_->port(); }

  absl::Mutex mu_;
  std::vector<uint8_t> memory_;
  uint8_t* base_ = nullptr;
  BumpPages pages_;
  std::unique_ptr<KvReceiver> receiver_;
  std::vector<ReceivedKv> received_;
  HelloMessage hello_;  // The peer's newest.
  std::vector<PageIndex> granted_;
  int lost_ = 0, damaged_ = 0, grants_ = 0;
  bool refuse_ = false, writes_over_ = false;
  std::unique_ptr<ReceiverHub> hub_;
};

class PrefillEnd final : public SenderEvents {
 public:
  PrefillEnd(std::unique_ptr<Transport> transport, int page_tokens, const TransferFaults& faults = {},
             uint64_t fingerprint = 1, std::map<std::string, double> expected_rates = {}, double minimum_share = 0.5)
      : memory_(TestLayout(page_tokens).pool_bytes()) {
    std::mt19937 random(4);
    for (uint8_t& byte : memory_) byte = static_cast<uint8_t>(random());
    std::vector<std::unique_ptr<Transport>> transports;
    transports.push_back(std::move(transport));
    HelloMessage hello = Hello("prefill-0", 100, page_tokens);
    hello.model_fingerprint = fingerprint;
    auto hub = SenderHub::Create({.hello = hello,
                                  .pool = memory_.data(),
                                  .expected_rates = std::move(expected_rates),
                                  .minimum_share = minimum_share,
                                  .reconnect_delay = absl::Milliseconds(1),
                                  .faults = faults},
                                 std::move(transports), *this);
    EXPECT_THAT(hub, IsOk());
    hub_ = *std::move(hub);
  }
  ~PrefillEnd() override { hub_->Stop(); }
  void OnOutcome(const HandoverOutcome& outcome) override {
    absl::MutexLock lock(&mu_);
    outcomes_.push_back(outcome);
  }
  void OnLinkState(const LinkState& state) override {
    absl::MutexLock lock(&mu_);
    state_ = state;
  }
  void OnIgnoredMessages(int64_t) override {}
  void OnMustRestart(const std::string&) override {}
  template <typename Predicate>
  bool Await(Predicate predicate) {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&predicate), kPatience);
  }
  void LinkTo(int port) { hub_->SetPeers({{"decode-0", Incarnation(200), "127.0.0.1:" + std::to_string(port)}}); }
  bool AwaitUp() {
    return Await([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state_.up; });
  }

  absl::Mutex mu_;
  std::vector<uint8_t> memory_;
  std::vector<HandoverOutcome> outcomes_;
  LinkState state_;
  std::unique_ptr<SenderHub> hub_;
};

// Moves 40 tokens in two chunks and three layer groups and compares what arrived.
void TransferAndCompare(PrefillEnd& prefill, DecodeEnd& decode, int source_page_tokens) {
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  EXPECT_GT(prefill.state_.gigabytes_per_second, 0);
  KvLayout from = TestLayout(source_page_tokens), to = TestLayout(16);
  std::vector<PageIndex> pages;
  for (int i = 0; i < (40 + source_page_tokens - 1) / source_page_tokens; ++i) pages.push_back((i * 7 + 3) % 64);
  const Incarnation peer(200);
  const HandoverId handover(9);
  prefill.hub_->Start(peer, handover, std::vector<TokenId>(40, 1), pages);
  for (IndexRange tokens : {IndexRange{0, 25}, IndexRange{25, 40}}) {
    for (int layer = 0; layer < 3; ++layer) prefill.hub_->LayersReady(peer, handover, tokens, {layer, layer + 1});
  }
  prefill.hub_->Finish(peer, handover, 77);
  ASSERT_TRUE(decode.Await([&] { return !decode.received_.empty(); }));
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kAcked);
  EXPECT_EQ(decode.received_[0].first_token, 77);
  for (const CopyRun& run : PlanTransfer(from, {pages}, to, {decode.received_[0].pages}, {0, 40}, {0, 3})) {
    ASSERT_EQ(
        std::vector<uint8_t>(prefill.memory_.data() + run.source, prefill.memory_.data() + run.source + run.bytes),
        std::vector<uint8_t>(decode.base_ + run.destination, decode.base_ + run.destination + run.bytes));
  }
}

TEST(LinkTest, MovesKvOverLoopback) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16);
  TransferAndCompare(prefill, decode, 16);
}

TEST(LinkTest, MovesKvOverSharedMemoryBetweenUnlikePages) {
  ASSERT_OK_AND_ASSIGN(auto shm, ShmPool::Create(TestLayout(16).pool_bytes() + kTestAreaBytes));
  DecodeEnd decode(NewShmTransport(shm.get()), shm.get());
  PrefillEnd prefill(NewShmTransport(nullptr), 8);
  TransferAndCompare(prefill, decode, 8);
}

std::unique_ptr<Transport> UcxTransportOrNull() {
  auto transports = MakeTransports({"ucx"}, nullptr);
  return transports.ok() ? std::move((*transports)[0]) : nullptr;
}

TEST(LinkTest, MovesKvOverUcx) {
  if (TransportVersion().empty()) GTEST_SKIP() << "built without UCX";
  DecodeEnd decode(UcxTransportOrNull());
  PrefillEnd prefill(UcxTransportOrNull(), 8);
  TransferAndCompare(prefill, decode, 8);
}

TEST(LinkTest, OverUcxALostLinkNeedsNoProofOfDeath) {
  if (TransportVersion().empty()) GTEST_SKIP() << "built without UCX";
  DecodeEnd decode(UcxTransportOrNull());
  PrefillEnd prefill(UcxTransportOrNull(), 8);
  prefill.LinkTo(decode.port());
  ASSERT_TRUE(prefill.AwaitUp());
  prefill.hub_->SetPeers({});
  ASSERT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
  EXPECT_TRUE(decode.writes_over_);
}

TEST(LinkTest, OverSharedMemoryOnlyAProofOfDeathEndsTheWritesOfALostLink) {
  ASSERT_OK_AND_ASSIGN(auto shm, ShmPool::Create(TestLayout(16).pool_bytes() + kTestAreaBytes));
  DecodeEnd decode(NewShmTransport(shm.get()), shm.get());
  PrefillEnd prefill(NewShmTransport(nullptr), 8);
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
  PrefillEnd prefill(NewLoopbackTransport(), 16, {.late_write_ms = 100});
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
  for (const CopyRun& run : PlanTransfer(TestLayout(16), {pages}, TestLayout(16), {decode.granted_}, {0, 40}, {0, 3})) {
    ASSERT_EQ(
        std::vector<uint8_t>(prefill.memory_.data() + run.source, prefill.memory_.data() + run.source + run.bytes),
        std::vector<uint8_t>(decode.base_ + run.destination, decode.base_ + run.destination + run.bytes));
  }
}

TEST(LinkTest, ADecodeWorkerOfAnotherModelIsNoPeer) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, {}, /*fingerprint=*/77);
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return absl::StrContains(prefill.state_.error, "model fingerprint"); }));
}

TEST(LinkTest, DelaysAndDuplicatesChangeNothing) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, {.duplicate_write_every = 2, .delay_polls = 50});
  TransferAndCompare(prefill, decode, 16);
}

void ExpectDamageIsSeen(const TransferFaults& faults) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, faults);
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

TEST(LinkTest, LosingTheDecodeWorkerEndsHandovers) {
  auto decode = std::make_unique<DecodeEnd>(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16);
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
  auto prefill = std::make_unique<PrefillEnd>(NewLoopbackTransport(), 16);
  prefill->LinkTo(decode.port());
  ASSERT_TRUE(prefill->AwaitUp());
  prefill.reset();
  EXPECT_TRUE(decode.Await([&] { return decode.lost_ == 1; }));
}

TEST(LinkTest, RefusalIsReportedWithItsReason) {
  DecodeEnd decode(NewLoopbackTransport());
  {
    absl::MutexLock lock(&decode.mu_);
    decode.refuse_ = true;
  }
  PrefillEnd prefill(NewLoopbackTransport(), 16);
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return prefill.state_.error == "refused: not you"; }));
}

// No memory moves a thousand terabytes a second.
constexpr double kImpossibleRate = 1e18;

TEST(LinkTest, ALinkFarUnderItsExpectedRateIsRefusedWithBothFigures) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, {}, 1, {{"loopback", kImpossibleRate}});
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.Await([&] { return !prefill.state_.error.empty(); }));
  absl::MutexLock lock(&prefill.mu_);
  EXPECT_FALSE(prefill.state_.up);
  EXPECT_THAT(prefill.state_.error, AllOf(HasSubstr("loopback: too slow: "), HasSubstr("under 0.5 of the 1e+09 GB/s")));
}

TEST(LinkTest, ASlowLinkIsMadeWhereItIsAllowed) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, {}, 1, {{"loopback", kImpossibleRate}}, /*minimum_share=*/0);
  TransferAndCompare(prefill, decode, 16);
}

TEST(LinkTest, OtherTransportsRatesJudgeNothing) {
  DecodeEnd decode(NewLoopbackTransport());
  PrefillEnd prefill(NewLoopbackTransport(), 16, {}, 1, {{"shm", kImpossibleRate}});
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
                                                             }});
    socket_->Send(EncodeLinkMessage(Hello("prefill-0", 100, 16)));
  }
  // Claims a passed test of `transport` once asked to test, and waits until the other side closes.
  bool ClaimsAndIsClosed(const std::string& transport) {
    claim_ = transport;
    const absl::Time deadline = Clock::Real().Now() + kPatience;
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
  PrefillEnd prefill(NewLoopbackTransport(), 16);
  prefill.hub_->Start(Incarnation(200), HandoverId(9), {1}, {0});
  ASSERT_TRUE(prefill.Await([&] { return !prefill.outcomes_.empty(); }));
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kLost);
}

}  // namespace
}  // namespace tandem
