#include "kvtransfer/kv_receiver.h"
#include "kvtransfer/kv_sender.h"
#include "kvtransfer/wire.h"

namespace {

class NoPages final : public tandem::HandoverPages {
 public:
  bool HasRoom(int) const override { return true; }
  std::vector<tandem::PageIndex> AcquireHeld(absl::Span<const tandem::TokenId>) override { return {}; }
  std::optional<std::vector<tandem::PageIndex>> AllocateGranted(int count) override {
    return std::vector<tandem::PageIndex>(count, 0);
  }
  void MarkCommitted(absl::Span<const tandem::PageIndex>) override {}
  void Quarantine(absl::Span<const tandem::PageIndex>) override {}
  void Free(absl::Span<const tandem::PageIndex>) override {}
};

}  // namespace

// A hostile peer's frames against both ends of a link.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  auto message = DecodeLinkMessage({reinterpret_cast<const char*>(data), size});
  if (!message.ok()) return 0;
  const KvLayout layout{.num_layers = 1, .num_kv_heads = 1, .head_dim = 4, .page_tokens = 4, .num_pages = 8};
  std::vector<uint8_t> pool(layout.pool_bytes());
  KvSender sender(layout, layout, /*checksums=*/true, pool.data());
  for (uint64_t id = 0; id < 3; ++id) {
    sender.Start(HandoverId(id), {1, 2, 3, 4, 5}, {0, 1});
    sender.LayersReady(HandoverId(id), {0, 5}, {0, 1}, absl::UnixEpoch());
    sender.Finish(HandoverId(id), 1);
  }
  NoPages pages;
  KvReceiver receiver({}, layout, pool.data(), pages);
  receiver.OnPeerUp(Incarnation(1), "prefill-0", layout, true);
  if (const auto* hello = std::get_if<HelloMessage>(&*message)) CheckCompatible(hello->layout, layout).IgnoreError();
  if (const auto* grant = std::get_if<GrantMessage>(&*message)) sender.OnGrant(*grant, absl::UnixEpoch());
  if (const auto* refuse = std::get_if<RefuseMessage>(&*message)) sender.OnRefuse(*refuse);
  if (const auto* ack = std::get_if<AckMessage>(&*message)) sender.OnAck(*ack, absl::UnixEpoch());
  if (const auto* abort = std::get_if<AbortMessage>(&*message)) {
    sender.OnAbort(*abort);
    receiver.OnAbort(Incarnation(1), *abort);
  }
  if (const auto* offer = std::get_if<OfferMessage>(&*message)) {
    receiver.Expect(offer->handover, offer->tokens);
    receiver.OnOffer(Incarnation(1), *offer, absl::UnixEpoch());
  }
  if (const auto* commit = std::get_if<CommitMessage>(&*message))
    receiver.OnCommit(Incarnation(1), *commit).status().IgnoreError();
  const absl::StatusOr<std::vector<PushOrder>> pushes = sender.TakePushes(1 << 30);
  for (const PushOrder& push : *pushes) {
    for (const CopyRun& run : push.write.runs) {
      if (run.source < 0 || run.source + run.bytes > layout.pool_bytes() ||
          run.destination + run.bytes > layout.pool_bytes())
        __builtin_trap();
    }
  }
  sender.OnFlushed();
  return 0;
}
