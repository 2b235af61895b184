#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/sampling_params.h"
#include "common/tls/tls_identity.h"

namespace tandem {

// What to generate; as tandem.v1.GenerateRequest. Exactly one of text, tokens and chat is used.
struct GenerateOptions {
  std::string request_id;
  std::string model;
  std::optional<std::string> text;
  std::optional<std::vector<TokenId>> tokens;
  std::vector<std::pair<std::string, std::string>> chat;  // Role, content.
  SamplingParams sampling;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  int priority = 0;
  std::string service_tier;
  int n = 0;
  absl::Duration timeout = absl::InfiniteDuration();
};

// One piece of the answer.
struct GeneratedPiece {
  std::string request_id;  // In the first piece.
  int index = 0;
  std::string text;
  std::vector<SampledToken> tokens;
  std::string finish_reason;  // "stop", "length" or "cancelled" in a sample's last piece; else empty.
};

struct GenerateSummary {
  int prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, retries = 0;
  absl::Duration queue, prefill, transfer, handover, decode;
  std::string prefill_worker, decode_worker;
};

struct WorkerSummary {
  std::string worker_id, role, state;
  int running = 0, waiting = 0, free_pages = 0, total_pages = 0;
  std::vector<std::pair<std::string, int>> pages;
  int64_t queued_prompt_tokens = 0;
  double prefill_tokens_per_second = 0, seconds_per_token = 0;  // As the router measured; 0: not yet.
  Incarnation incarnation;                                      // Another one each time that the worker starts.
};
struct LinkSummary {
  std::string prefill_worker, decode_worker, transport, path;
  double gigabytes_per_second = 0, latency_us = 0;
  bool up = false;
  std::string error;  // Why it is not up; or, while it is, which transports were passed over, and why.
};
struct ClusterSummary {
  bool ready = false;
  int active_requests = 0;
  std::vector<WorkerSummary> workers;
  std::vector<LinkSummary> links;
};

struct ModelSummary {
  std::string name;
  int max_context_tokens = 0;  // Prompt plus output.
  int vocabulary_size = 0;
};

// What a client calls with.
struct ClientIdentity {
  std::string api_key;  // Empty: none.
  // Null: without TLS. Else whom to believe; `name`: that the router's certificate must have, empty: what is dialled;
  // with a certificate where the router wants one.
  std::shared_ptr<const TlsIdentity> tls;
};

// What the environment says: TANDEM_API_KEY, without white space around it; TANDEM_TLS_AUTHORITIES, a file with the
// certificates of who signs the router's, for TLS; TANDEM_TLS_CERTIFICATE and TANDEM_TLS_KEY, files with the client's
// own; TANDEM_TLS_NAME, the name in the router's. INVALID_ARGUMENT, without the key: it is no printable ASCII, which no
// router takes; or as of LoadClientTls.
absl::StatusOr<ClientIdentity> IdentityOfEnvironment();

// A connection to a router.
//
// Thread-safety: thread-safe.
class RouterClient {
 public:
  // `router`: host:port or unix:/path. Connects when first used; a call waits up to 100 ms for that, and less where the
  // router answers, before it fails as UNAVAILABLE.
  explicit RouterClient(const std::string& router, const ClientIdentity& identity = {});
  ~RouterClient();

  // Calls `on_piece` for each piece, on this thread, until the answer is whole; returning false
  // from it cancels. The router's status otherwise, with its reason and retry hint.
  absl::StatusOr<GenerateSummary> Generate(const GenerateOptions& options,
                                           const std::function<bool(const GeneratedPiece&)>& on_piece);
  absl::Status Cancel(const std::string& request_id);
  absl::StatusOr<ClusterSummary> Status(absl::Duration timeout = absl::Seconds(2));
  absl::StatusOr<std::vector<ModelSummary>> Models();
  // Why a request went where it went: how long ago, and what was decided; oldest first. NOT_FOUND when the router does
  // not know it any more.
  absl::StatusOr<std::vector<std::pair<absl::Duration, std::string>>> Explain(const std::string& request_id);
  // `start_again`: it is to be started again, by what started it, when it has left.
  absl::Status Drain(const std::string& worker_id, bool start_again = false);

 private:
  struct Connection;
  const std::unique_ptr<Connection> connection_;
};

}  // namespace tandem
