#include "tests/support/link_ends.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/peer_process.h"
#include "kvtransfer/self_test.h"
#include "tests/support/status_matchers.h"

namespace tandem {

KvLayout LinkTestLayout(int page_tokens) {
  return {.num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .page_tokens = page_tokens, .num_pages = 64};
}

HelloMessage LinkTestHello(const std::string& worker, Incarnation incarnation, const KvLayout& layout) {
  HelloMessage hello;
  hello.worker_id = worker;
  hello.incarnation = incarnation;
  hello.host_boot_id = HostId();
  hello.pid = getpid();
  hello.layout = layout;
  hello.model_fingerprint = 1;
  hello.checksums = true;
  return hello;
}

std::vector<std::unique_ptr<Transport>> OneTransport(std::unique_ptr<Transport> transport) {
  std::vector<std::unique_ptr<Transport>> transports;
  transports.push_back(std::move(transport));
  return transports;
}

TestPages::TestPages(int count) : states_(count, State::kFree) {}

std::optional<std::vector<PageIndex>> TestPages::AllocateGranted(int count) {
  if (Count(State::kFree) < count) return std::nullopt;
  std::vector<PageIndex> pages;
  for (; static_cast<int>(pages.size()) < count; ++next_) {
    State& state = states_[next_ % states_.size()];
    if (state != State::kFree) continue;
    state = State::kGranted;
    pages.push_back(static_cast<PageIndex>(next_ % states_.size()));
  }
  return pages;
}

void TestPages::Free(absl::Span<const PageIndex> pages) {
  for (PageIndex page : pages) {
    EXPECT_NE(states_[page], State::kFree) << "page " << page;
    states_[page] = State::kFree;
  }
}

int TestPages::Count(State state) const { return static_cast<int>(std::count(states_.begin(), states_.end(), state)); }

void TestPages::Move(absl::Span<const PageIndex> pages, State from, State to) {
  for (PageIndex page : pages) {
    EXPECT_EQ(states_[page], from) << "page " << page;
    states_[page] = to;
  }
}

DecodeEnd::DecodeEnd(std::vector<std::unique_ptr<Transport>> transports, const Options& options)
    : options_(options), base_(options.pool), pages_(options.layout.num_pages) {
  if (base_ == nullptr) {
    memory_.resize(options.layout.pool_bytes() + kTestAreaBytes);
    base_ = memory_.data();
  }
  receiver_ = std::make_unique<KvReceiver>(KvReceiver::Options{}, options.layout, base_, pages_, *options.memory);
  HelloMessage hello = LinkTestHello("decode-0", options.incarnation, options.layout);
  hello.peer_secret = options.peer_secret;
  auto hub = ReceiverHub::Create(
      {.hello = hello, .listen = "127.0.0.1:0", .tls = options.tls, .pool = base_, .memory = options.memory},
      std::move(transports), *this);
  EXPECT_THAT(hub, IsOk());
  absl::MutexLock lock(&mu_);
  hub_ = *std::move(hub);
  hub_->Start();
}

void DecodeEnd::OnHello(int64_t connection, const HelloMessage& hello) {
  absl::MutexLock lock(&mu_);
  hello_ = hello;
  ++hellos_;
  if (refuse_) {
    hub_->Refuse(connection, {.reason = "not you"});
  } else {
    hub_->Accept(connection);
  }
}

void DecodeEnd::OnPeerUp(const HelloMessage& hello) {
  absl::MutexLock lock(&mu_);
  receiver_->OnPeerUp(hello.incarnation, hello.worker_id, hello.layout, hello.checksums);
}

void DecodeEnd::OnPeerLost(Incarnation peer, bool writes_over) {
  absl::MutexLock lock(&mu_);
  receiver_->OnPeerLost(peer, writes_over);
  writes_over_ = writes_over;
  ++lost_;
}

void DecodeEnd::OnWritesOver(Incarnation peer) {
  absl::MutexLock lock(&mu_);
  receiver_->OnWritesOver(peer);
}

void DecodeEnd::OnMessage(Incarnation peer, const LinkMessage& message) {
  absl::MutexLock lock(&mu_);
  if (const auto* offer = std::get_if<OfferMessage>(&message)) {
    receiver_->Expect(offer->handover, offer->tokens);
    receiver_->OnOffer(peer, *offer, absl::UnixEpoch());
  } else if (const auto* commit = std::get_if<CommitMessage>(&message)) {
    auto received = receiver_->OnCommit(peer, *commit);
    if (!received.ok()) ++damaged_;
    if (received.ok() && received->has_value()) {
      if (options_.frees_received) pages_.Free((*received)->pages);
      received_.push_back(**received);
    }
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

PrefillEnd::PrefillEnd(std::vector<std::unique_ptr<Transport>> transports, const Options& options)
    : options_(options), memory_(options.layout.pool_bytes()) {
  std::mt19937 random(4);
  for (uint8_t& byte : memory_) byte = static_cast<uint8_t>(random());
  HelloMessage hello = LinkTestHello("prefill-0", options.incarnation, options.layout);
  hello.model_fingerprint = options.model_fingerprint;
  hello.peer_secret = options.peer_secret;
  auto hub = SenderHub::Create({.hello = hello,
                                .tls = options.tls,
                                .pool = options.pool == nullptr ? memory_.data() : options.pool,
                                .memory = options.memory,
                                .expected_rates = options.expected_rates,
                                .minimum_share = options.minimum_share,
                                .reconnect_delay = absl::Milliseconds(1),
                                .faults = options.faults},
                               std::move(transports), *this);
  EXPECT_THAT(hub, IsOk());
  hub_ = *std::move(hub);
}

void PrefillEnd::OnOutcome(const HandoverOutcome& outcome) {
  absl::MutexLock lock(&mu_);
  outcomes_.push_back(outcome);
}

void PrefillEnd::OnLinkState(const LinkState& state) {
  absl::MutexLock lock(&mu_);
  state_ = state;
}

void PrefillEnd::LinkTo(int port, Incarnation decode) {
  hub_->SetPeers({{"decode-0", decode, absl::StrCat("127.0.0.1:", port)}});
}

void PrefillEnd::HandOver(Incarnation decode, HandoverId handover, int tokens, bool finishes) {
  std::vector<PageIndex> pages((tokens + options_.layout.page_tokens - 1) / options_.layout.page_tokens);
  std::iota(pages.begin(), pages.end(), 0);
  hub_->Start(decode, handover, std::vector<TokenId>(tokens, 1), std::move(pages));
  for (int layer = 0; layer < options_.layout.num_layers; ++layer) {
    hub_->LayersReady(decode, handover, {0, tokens}, {layer, layer + 1});
  }
  if (finishes) hub_->Finish(decode, handover, 77);
}

std::vector<CopyRun> TransferFortyTokens(PrefillEnd& prefill, DecodeEnd& decode, int source_page_tokens) {
  prefill.LinkTo(decode.port());
  EXPECT_TRUE(prefill.AwaitUp());
  EXPECT_GT(prefill.state_.gigabytes_per_second, 0);
  std::vector<PageIndex> pages;
  for (int i = 0; i < (40 + source_page_tokens - 1) / source_page_tokens; ++i) pages.push_back((i * 7 + 3) % 64);
  const Incarnation peer(200);
  const HandoverId handover(9);
  prefill.hub_->Start(peer, handover, std::vector<TokenId>(40, 1), pages);
  for (IndexRange tokens : {IndexRange{0, 25}, IndexRange{25, 40}}) {
    for (int layer = 0; layer < 3; ++layer) prefill.hub_->LayersReady(peer, handover, tokens, {layer, layer + 1});
  }
  prefill.hub_->Finish(peer, handover, 77);
  const bool received = decode.Await([&] { return !decode.received_.empty(); });
  const bool ended = prefill.Await([&] { return !prefill.outcomes_.empty(); });
  EXPECT_TRUE(received);
  EXPECT_TRUE(ended);
  if (!received || !ended) return {};
  EXPECT_EQ(prefill.outcomes_[0].kind, HandoverOutcome::Kind::kAcked);
  EXPECT_EQ(decode.received_[0].first_token, 77);
  return PlanTransfer(LinkTestLayout(source_page_tokens), {pages}, LinkTestLayout(16), {decode.received_[0].pages},
                      {0, 40}, {0, 3});
}

void TransferAndCompare(PrefillEnd& prefill, DecodeEnd& decode, int source_page_tokens) {
  const std::vector<CopyRun> runs = TransferFortyTokens(prefill, decode, source_page_tokens);
  ASSERT_FALSE(runs.empty());
  for (const CopyRun& run : runs) {
    ASSERT_EQ(
        std::vector<uint8_t>(prefill.memory_.data() + run.source, prefill.memory_.data() + run.source + run.bytes),
        std::vector<uint8_t>(decode.base_ + run.destination, decode.base_ + run.destination + run.bytes));
  }
}

}  // namespace tandem
