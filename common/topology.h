#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/secret.h"
#include "common/tls/tls_settings.h"

namespace tandem {

enum class Role { kPrefill, kDecode };
absl::string_view RoleName(Role role);

// How the router chooses among the workers that can take a request.
enum class PlacementPolicy {
  kPredicted,   // The first token that comes first, and the shortest time per token.
  kLeastLoad,   // Fewest requests.
  kRoundRobin,  // One after the other.
};

// How weights are computed with.
enum class Precision {
  kQuantised,  // Weights as stored, int8 activations for quantised ones; KV cache in f16.
  kFull,       // Weights dequantised to f32, f32 arithmetic and KV cache: for comparisons.
  kBf16,       // Weights, activations and KV cache in bf16, sums in f32: what GPUs compute with.
};

struct ModelSettings {
  std::string path;         // GGUF file or Hugging Face folder; absolute after loading.
  std::string served_name;  // What clients call it.
  Precision precision = Precision::kQuantised;
  bool has_precision = false;  // The file says which; else the pools' device does.
  bool float8_kv = false;      // KV cache in FP8 (E4M3, no scales) instead of the precision's type.
  std::string where;           // "file:line" of the path, for errors.
};

// A key that clients call with, and what its owner may take.
struct ApiKeySettings {
  std::string name;  // Of the owner; in logs in place of the key.
  SecretSource key;
  int64_t max_active_requests = 0;  // 0: as many as the router takes.
  double weight = 1;                // Of the owner's share when the router is full.
  bool is_operator = false;         // May drain workers.
};

// A class of requests, by what their clients wait for.
struct ServiceTier {
  std::string name;  // As clients say; "default" is for those that say nothing.
  int priority = 0;  // Added to that of the request.
  // A request is refused at once when others are before it and 0.8 of the predicted time to its first token, at the
  // rate that was measured of the worker, is more than is left of this.
  absl::Duration ttft = absl::InfiniteDuration();
  // The same for the predicted time per further token, where others run on the decode worker.
  absl::Duration tpot = absl::InfiniteDuration();
};

struct RouterSettings {
  int replicas = 1;  // Routers beside each other, each of which knows all workers; the ports of each are 10 higher.
  std::string listen = "127.0.0.1:7070";          // gRPC address.
  std::string http_listen = "127.0.0.1:8000";     // OpenAI's HTTP interface; empty: off.
  std::string metrics_listen = "127.0.0.1:7071";  // Prometheus text over HTTP; empty: off.
  int64_t max_active_requests = 256;              // More are refused with RESOURCE_EXHAUSTED.
  int64_t max_retries = 3;                        // Moves to another worker, per request.
  // Prompts of which decode lacks at most so many tokens run on decode alone when that is clearly faster; 0: never.
  int64_t conditional_prefill_tokens = 256;
  // Reasoning and tool calls of chats go to fields of their own; else all stays in the content.
  bool splits_chat_output = true;
  std::vector<ServiceTier> service_tiers;
  std::string otlp_endpoint;             // Where spans go, as OTLP over HTTP; empty: nowhere.
  double trace_share = 1;                // Of the calls that belong to no trace of their client's.
  std::vector<ApiKeySettings> api_keys;  // None: everybody may call.
  bool access_log = false;               // A log line for each call that ends.
  PlacementPolicy placement = PlacementPolicy::kPredicted;
  bool random_ties = true;  // Else the worker whose name comes first gets what others could do as well.
  absl::Duration worker_timeout = absl::Seconds(1);  // Silence after which a worker is lost.
  // Time a request may wait for a first pair of workers before UNAVAILABLE.
  absl::Duration placement_timeout = absl::Seconds(10);
};

// Processes that a worker consists of, one for each rank. Only tensor parallelism (tp) is there; the others are 1.
struct Parallelism {
  int tp = 1, dp = 1, ep = 1, pp = 1;
};

struct PoolSettings {
  std::string name;
  Role role = Role::kPrefill;
  int replicas = 1;
  std::string device = "cpu";  // Or "cuda".
  int first_gpu = -1;          // Device cuda: of the first replica's first rank; the others have the next ones.
  int threads = 1;             // Compute threads per process.
  Parallelism parallelism;
  int64_t kv_memory_bytes = int64_t{64} << 20;  // 0, with device cuda: what is free on the GPU.
  int page_tokens = 16;
  int64_t max_step_tokens = 256;  // Token budget of one engine step (chunked prefill).
  // Prompt tokens of a step in which others decode; at most max_step_tokens, which is also the default.
  int64_t max_prefill_beside_decode = 256;
  int64_t max_running_requests = 32;
  int64_t max_waiting_requests = 256;
  absl::Duration kv_hold = absl::Seconds(30);  // Prefill: longest hold of KV for a decode worker.
  std::string host = "127.0.0.1";
  std::string domain = host;  // What its workers share with those of the same domain: a host, an NVLink rack.
  int service_port = 0;       // First replica's; 0 draws free ones.
  int link_port = 0;
  int metrics_port = 0;
  std::string where;  // "file:line" of the pool, for errors.
};

struct LinkSettings {
  std::vector<std::string> transports = {"shm", "ucx"};  // Allowed, in order of preference.
  // Bytes a second that a link should reach in its self-test, by transport; those without an entry are not judged.
  std::map<std::string, double> expected_rates;
  double minimum_share = 0.5;  // Of the expected rate: slower links are refused.
  bool checksums = false;
  int layer_groups = 4;  // Pushes per chunk.
  absl::Duration heartbeat = absl::Milliseconds(250);
  int missed_heartbeats = 4;
};

// One process that `tandem up` starts.
struct ProcessPlan {
  std::string name;  // "router" ("router-1" for a second), "prefill-0"; "decode-1-rank-1" for a worker's second rank.
  std::string program;
  int pool = -1;  // Index into pools; -1 for a router.
  int replica = 0;
  int tp_rank = 0;  // Only rank 0 has addresses: it alone talks with others.
  std::optional<int> gpu;
  // Port 0 where it is drawn at start.
  std::string service_address, http_address, link_address, metrics_address;
  std::string domain;  // Its pool's.
};

// A whole cluster as one YAML file says it; docs/configuration.md lists every key.
struct Topology {
  std::string file;
  ModelSettings model;
  RouterSettings router;
  std::vector<PoolSettings> pools;
  LinkSettings links;
  // What the cluster's processes prove each other that they belong together with.
  SecretSource cluster_secret;
  TlsSettings tls;

  // INVALID_ARGUMENT: all errors of the file, one "file:line: key: cause and fix" a line.
  static absl::StatusOr<Topology> Load(const std::string& path);
  static absl::StatusOr<Topology> Parse(const std::string& text, const std::string& name);

  std::vector<ProcessPlan> Processes() const;
  // Where workers find the routers.
  std::vector<std::string> RouterAddresses() const;
  // NOT_FOUND, with the names there are.
  absl::StatusOr<ProcessPlan> FindProcess(absl::string_view name) const;
};

}  // namespace tandem
