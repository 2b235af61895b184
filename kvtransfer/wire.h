#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/error_reason.h"
#include "common/ids.h"
#include "common/kv_layout.h"
#include "kvtransfer/transport.h"

namespace tandem {

// The messages of a link in native form; proto/tandem/v1/link.proto says what each field means.

inline constexpr int kLinkProtocolVersion = 2;

struct HelloMessage {
  int protocol_version = kLinkProtocolVersion;
  std::string worker_id;
  int rank = 0;
  Incarnation incarnation;
  std::string host_boot_id;
  int64_t pid = 0;
  std::string ucx_version;
  uint64_t model_fingerprint = 0;
  KvLayout layout;
  std::vector<PoolExport> exports;
  bool checksums = false;
  bool writes_over = false;
  std::string peer_secret;
};
struct SelfTestDoneMessage {
  std::string transport;
  uint64_t large_seed = 0, large_bytes = 0, small_seed = 0, small_bytes = 0;
  double gigabytes_per_second = 0, latency_us = 0;
};
struct LinkReadyMessage {
  std::string transport;
};
struct LinkRefusedMessage {
  std::string reason;
  bool retryable = false;
  bool must_restart = false;
};
struct OfferMessage {
  HandoverId handover;
  std::vector<TokenId> tokens;
};
struct GrantMessage {
  HandoverId handover;
  TransferEpoch epoch;
  std::vector<PageIndex> pages;
  int first_missing_page = 0;
};
struct RefuseMessage {
  HandoverId handover;
  std::string reason;
  ErrorReason error_reason = ErrorReason::kUnknown;
};
struct CommitMessage {
  HandoverId handover;
  TransferEpoch epoch;
  int pages_written = 0;
  std::vector<uint32_t> page_checksums;
  TokenId first_token = 0;
};
struct AckMessage {
  HandoverId handover;
  TransferEpoch epoch;
};
struct AbortMessage {
  HandoverId handover;
  TransferEpoch epoch;  // Not set: whatever was or will be granted for this hand-over.
  std::string reason;
  ErrorReason error_reason = ErrorReason::kUnknown;
};
struct AbortDoneMessage {
  HandoverId handover;
  TransferEpoch epoch;
};
struct LinkHeartbeatMessage {
  Incarnation incarnation;
  int64_t sequence = 0;
};

using LinkMessage =
    std::variant<HelloMessage, SelfTestDoneMessage, LinkReadyMessage, LinkRefusedMessage, OfferMessage, GrantMessage,
                 RefuseMessage, CommitMessage, AckMessage, AbortMessage, AbortDoneMessage, LinkHeartbeatMessage>;

// Frames larger than this are refused: a peer that claims more is no peer of ours.
inline constexpr uint32_t kMaxLinkFrameBytes = 64u << 20;

// The message as the payload of a frame.
std::string EncodeLinkMessage(const LinkMessage& message);
// INVALID_ARGUMENT when the bytes are no message, or one that this version does not know.
absl::StatusOr<LinkMessage> DecodeLinkMessage(absl::string_view payload);

}  // namespace tandem
