#include "kvtransfer/wire.h"

#include "absl/strings/str_cat.h"
#include "tandem/v1/link.pb.h"

namespace tandem {
namespace {

void Fill(const KvLayout& layout, v1::KvLayoutProto* proto) {
  proto->set_num_layers(layout.num_layers);
  proto->set_num_kv_heads(layout.num_kv_heads);
  proto->set_head_dim(layout.head_dim);
  proto->set_num_planes(layout.num_planes);
  proto->set_element_bytes(layout.element_bytes);
  proto->set_page_tokens(layout.page_tokens);
  proto->set_num_pages(layout.num_pages);
  proto->set_tp_rank(layout.tp_rank);
  proto->set_tp_size(layout.tp_size);
}

KvLayout ToNative(const v1::KvLayoutProto& proto) {
  return {.num_layers = proto.num_layers(),
          .num_kv_heads = proto.num_kv_heads(),
          .head_dim = proto.head_dim(),
          .num_planes = proto.num_planes(),
          .element_bytes = proto.element_bytes(),
          .page_tokens = proto.page_tokens(),
          .num_pages = proto.num_pages(),
          .tp_rank = proto.tp_rank(),
          .tp_size = proto.tp_size()};
}

struct Encoder {
  v1::LinkMessage& out;

  void operator()(const HelloMessage& message) {
    v1::Hello* hello = out.mutable_hello();
    hello->set_protocol_version(message.protocol_version);
    hello->set_worker_id(message.worker_id);
    hello->set_rank(message.rank);
    hello->set_incarnation(message.incarnation.value());
    hello->set_host_boot_id(message.host_boot_id);
    hello->set_pid(message.pid);
    hello->set_ucx_version(message.ucx_version);
    hello->set_model_fingerprint(message.model_fingerprint);
    Fill(message.layout, hello->mutable_layout());
    for (const PoolExport& pool : message.exports) {
      v1::PoolExport* proto = hello->add_exports();
      proto->set_transport(pool.transport);
      proto->set_address(pool.address);
      proto->set_remote_key(pool.remote_key);
      proto->set_base_address(pool.base_address);
      proto->set_size_bytes(pool.size_bytes);
    }
    hello->set_checksums(message.checksums);
    hello->set_writes_over(message.writes_over);
    hello->set_peer_secret(message.peer_secret);
  }
  void operator()(const SelfTestDoneMessage& message) {
    v1::SelfTestDone* done = out.mutable_self_test_done();
    done->set_transport(message.transport);
    done->set_large_seed(message.large_seed);
    done->set_large_bytes(message.large_bytes);
    done->set_small_seed(message.small_seed);
    done->set_small_bytes(message.small_bytes);
    done->set_gigabytes_per_second(message.gigabytes_per_second);
    done->set_latency_us(message.latency_us);
  }
  void operator()(const LinkReadyMessage& message) { out.mutable_ready()->set_transport(message.transport); }
  void operator()(const LinkRefusedMessage& message) {
    out.mutable_refused()->set_reason(message.reason);
    out.mutable_refused()->set_retryable(message.retryable);
    out.mutable_refused()->set_must_restart(message.must_restart);
  }
  void operator()(const OfferMessage& message) {
    v1::Offer* offer = out.mutable_offer();
    offer->set_handover(message.handover.value());
    offer->mutable_tokens()->Add(message.tokens.begin(), message.tokens.end());
  }
  void operator()(const GrantMessage& message) {
    v1::Grant* grant = out.mutable_grant();
    grant->set_handover(message.handover.value());
    grant->set_epoch(message.epoch.value());
    grant->mutable_pages()->Add(message.pages.begin(), message.pages.end());
    grant->set_first_missing_page(message.first_missing_page);
  }
  void operator()(const RefuseMessage& message) {
    v1::Refuse* refuse = out.mutable_refuse();
    refuse->set_handover(message.handover.value());
    refuse->set_reason(message.reason);
    refuse->set_error_reason(std::string(ErrorReasonName(message.error_reason)));
  }
  void operator()(const CommitMessage& message) {
    v1::Commit* commit = out.mutable_commit();
    commit->set_handover(message.handover.value());
    commit->set_epoch(message.epoch.value());
    commit->set_pages_written(message.pages_written);
    commit->mutable_page_checksums()->Add(message.page_checksums.begin(), message.page_checksums.end());
    commit->set_first_token(message.first_token);
  }
  void operator()(const AckMessage& message) {
    out.mutable_ack()->set_handover(message.handover.value());
    out.mutable_ack()->set_epoch(message.epoch.value());
  }
  void operator()(const AbortMessage& message) {
    out.mutable_abort()->set_handover(message.handover.value());
    out.mutable_abort()->set_epoch(message.epoch.value());
    out.mutable_abort()->set_reason(message.reason);
    out.mutable_abort()->set_error_reason(std::string(ErrorReasonName(message.error_reason)));
  }
  void operator()(const AbortDoneMessage& message) {
    out.mutable_abort_done()->set_handover(message.handover.value());
    out.mutable_abort_done()->set_epoch(message.epoch.value());
  }
  void operator()(const LinkHeartbeatMessage& message) {
    out.mutable_heartbeat()->set_incarnation(message.incarnation.value());
    out.mutable_heartbeat()->set_sequence(message.sequence);
  }
};

HelloMessage ToNative(const v1::Hello& hello) {
  HelloMessage message;
  message.protocol_version = hello.protocol_version();
  message.worker_id = hello.worker_id();
  message.rank = hello.rank();
  message.incarnation = Incarnation(hello.incarnation());
  message.host_boot_id = hello.host_boot_id();
  message.pid = hello.pid();
  message.ucx_version = hello.ucx_version();
  message.model_fingerprint = hello.model_fingerprint();
  message.layout = ToNative(hello.layout());
  for (const v1::PoolExport& pool : hello.exports()) {
    message.exports.push_back(
        {pool.transport(), pool.address(), pool.remote_key(), pool.base_address(), pool.size_bytes()});
  }
  message.checksums = hello.checksums();
  message.writes_over = hello.writes_over();
  message.peer_secret = hello.peer_secret();
  return message;
}

}  // namespace

std::string EncodeLinkMessage(const LinkMessage& message) {
  v1::LinkMessage proto;
  std::visit(Encoder{proto}, message);
  return proto.SerializeAsString();
}

absl::StatusOr<LinkMessage> DecodeLinkMessage(absl::string_view payload) {
  v1::LinkMessage proto;
  if (!proto.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
    return absl::InvalidArgumentError(absl::StrCat("link frame of ", payload.size(), " bytes is no message"));
  }
  switch (proto.message_case()) {
    case v1::LinkMessage::kHello:
      return LinkMessage(ToNative(proto.hello()));
    case v1::LinkMessage::kSelfTestDone: {
      const v1::SelfTestDone& done = proto.self_test_done();
      return LinkMessage(SelfTestDoneMessage{done.transport(), done.large_seed(), done.large_bytes(), done.small_seed(),
                                             done.small_bytes(), done.gigabytes_per_second(), done.latency_us()});
    }
    case v1::LinkMessage::kReady:
      return LinkMessage(LinkReadyMessage{proto.ready().transport()});
    case v1::LinkMessage::kRefused:
      return LinkMessage(
          LinkRefusedMessage{proto.refused().reason(), proto.refused().retryable(), proto.refused().must_restart()});
    case v1::LinkMessage::kOffer:
      return LinkMessage(OfferMessage{HandoverId(proto.offer().handover()),
                                      {proto.offer().tokens().begin(), proto.offer().tokens().end()}});
    case v1::LinkMessage::kGrant:
      return LinkMessage(GrantMessage{HandoverId(proto.grant().handover()),
                                      TransferEpoch(proto.grant().epoch()),
                                      {proto.grant().pages().begin(), proto.grant().pages().end()},
                                      proto.grant().first_missing_page()});
    case v1::LinkMessage::kRefuse:
      return LinkMessage(RefuseMessage{HandoverId(proto.refuse().handover()), proto.refuse().reason(),
                                       ParseErrorReason(proto.refuse().error_reason())});
    case v1::LinkMessage::kCommit:
      return LinkMessage(CommitMessage{HandoverId(proto.commit().handover()),
                                       TransferEpoch(proto.commit().epoch()),
                                       proto.commit().pages_written(),
                                       {proto.commit().page_checksums().begin(), proto.commit().page_checksums().end()},
                                       proto.commit().first_token()});
    case v1::LinkMessage::kAck:
      return LinkMessage(AckMessage{HandoverId(proto.ack().handover()), TransferEpoch(proto.ack().epoch())});
    case v1::LinkMessage::kAbort:
      return LinkMessage(AbortMessage{HandoverId(proto.abort().handover()), TransferEpoch(proto.abort().epoch()),
                                      proto.abort().reason(), ParseErrorReason(proto.abort().error_reason())});
    case v1::LinkMessage::kAbortDone:
      return LinkMessage(
          AbortDoneMessage{HandoverId(proto.abort_done().handover()), TransferEpoch(proto.abort_done().epoch())});
    case v1::LinkMessage::kHeartbeat:
      return LinkMessage(
          LinkHeartbeatMessage{Incarnation(proto.heartbeat().incarnation()), proto.heartbeat().sequence()});
    case v1::LinkMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("link frame holds no message that this version knows");
}

}  // namespace tandem
