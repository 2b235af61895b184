#include "common/topology.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/cluster_secret.h"
#include "common/config_node.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

constexpr int64_t kMaxCount = 1'000'000;
constexpr int kPortsOfRouter = 10;  // From one router to the next, so that the addresses of one have room.
constexpr int64_t kGpuStepTokens = 2048, kGpuRunningRequests = 128;            // Defaults.
constexpr int64_t kMaxGpuStepTokens = 65'536, kMaxGpuRunningRequests = 4'096;  // What plans and grids have room for.
constexpr absl::Duration kLeastWorkerTimeout = absl::Milliseconds(500);

// Absolute and, where there is such a file, without links and dots. Whoever opens it says what is wrong with it.
std::string ResolvedPath(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path resolved = std::filesystem::canonical(path, error);
  if (error) resolved = std::filesystem::absolute(path, error);
  return error ? path : resolved;
}

ModelSettings ReadModel(ConfigNode node, const std::filesystem::path& folder) {
  ModelSettings model;
  model.where = node.Where("path");
  model.path = node.RequireString("path");
  if (!model.path.empty()) model.path = ResolvedPath(folder / model.path);
  model.served_name = node.RequireString("served_name");
  const std::string precision = node.GetEnum("precision", "auto", {"auto", "quantised", "full", "bf16"});
  model.precision = precision == "full"   ? Precision::kFull
                    : precision == "bf16" ? Precision::kBf16
                                          : Precision::kQuantised;
  model.has_precision = precision != "auto";
  model.float8_kv = node.GetEnum("kv_cache_dtype", "auto", {"auto", "fp8"}) == "fp8";
  return model;
}

bool IsHostAndPort(absl::string_view address, int min_port) {
  size_t colon = address.rfind(':');
  int port = -1;
  return colon != absl::string_view::npos && colon > 0 && absl::SimpleAtoi(address.substr(colon + 1), &port) &&
         port >= min_port && port <= 65535;
}

// Workers and clients dial it, so it cannot be drawn at start.
std::string ReadListenAddress(ConfigNode& node, absl::string_view key, const std::string& default_value) {
  std::string address = node.GetString(key, default_value);
  if (!absl::StartsWith(address, "unix:") && !IsHostAndPort(address, 1)) {
    node.AddError(key, absl::StrCat("expected host:port with a port over 0, or unix:/path, got \"", address, "\""));
  }
  return address;
}

// Empty: off.
std::string ReadHttpAddress(ConfigNode& node, absl::string_view key, const std::string& default_value) {
  std::string address = node.GetString(key, default_value);
  if (!address.empty() && !IsHostAndPort(address, 0)) {
    node.AddError(key, absl::StrCat("expected host:port, or nothing to turn it off, got \"", address, "\""));
  }
  return address;
}

// Of PREFIX_file and PREFIX_env.
SecretSource ReadSecretSource(ConfigNode& node, const std::string& prefix, const std::filesystem::path& folder) {
  SecretSource source;
  source.file = node.GetString(prefix + "_file", "");
  source.env = node.GetString(prefix + "_env", "");
  source.where = node.Where(source.env.empty() ? prefix + "_file" : prefix + "_env");
  if (!source.file.empty() && !source.env.empty()) {
    node.AddError(prefix + "_file", absl::StrCat("set this or ", prefix, "_env, not both"));
  }
  if (!source.file.empty()) source.file = ResolvedPath(folder / source.file);
  return source;
}

std::vector<ApiKeySettings> ReadApiKeys(ConfigNode& router, const std::filesystem::path& folder) {
  std::vector<ApiKeySettings> keys;
  for (ConfigNode& node : router.GetList("api_keys")) {
    ApiKeySettings& key = keys.emplace_back();
    key.name = node.RequireString("name");
    key.key = ReadSecretSource(node, "key", folder);
    if (!key.key.is_set()) node.AddError("key_file", "set key_file or key_env: the key itself does not belong here");
    key.max_active_requests = node.GetInt("max_active_requests", 0, 1, kMaxCount);
    key.weight = node.GetNumber("weight", key.weight, 0.001, 1000);
    key.is_operator = node.GetBool("operator", key.is_operator);
    for (size_t i = 0; i + 1 < keys.size(); ++i) {
      if (keys[i].name == key.name) {
        node.AddError("name", absl::StrCat("two keys are of ", key.name, " (the other at ", keys[i].key.where, ")"));
      }
    }
  }
  return keys;
}

TlsSettings ReadTls(ConfigNode node, const std::filesystem::path& folder) {
  const auto file = [&](const char* key, const std::string& path) -> TlsSettings::File {
    return {path.empty() ? "" : ResolvedPath(folder / path), absl::StrCat(node.Where(key), ": tls.", key)};
  };
  TlsSettings tls;
  tls.certificate = file("certificate", node.RequireString("certificate"));
  tls.key = file("key", node.RequireString("key"));
  tls.authorities = file("authorities", node.RequireString("authorities"));
  tls.client_authorities = file("client_authorities", node.GetString("client_authorities", ""));
  tls.name = node.GetString("name", "tandem");
  if (tls.name.empty()) node.AddError("name", "must be a DNS name that every process's certificate has");
  return tls;
}

std::vector<ServiceTier> ReadServiceTiers(ConfigNode& router) {
  std::vector<ServiceTier> tiers;
  for (ConfigNode& node : router.GetList("service_tiers")) {
    ServiceTier& tier = tiers.emplace_back();
    tier.name = node.RequireString("name");
    tier.priority = static_cast<int>(node.GetInt("priority", 0, -100, 100));
    if (node.Has("ttft")) tier.ttft = node.GetDuration("ttft", tier.ttft);
    if (tier.name == "auto") node.AddError("name", "auto is what clients call the default tier; name it default");
    if (node.Has("tpot")) tier.tpot = node.GetDuration("tpot", tier.tpot);
    if (tier.ttft <= absl::ZeroDuration()) node.AddError("ttft", "must be over 0");
    if (tier.tpot <= absl::ZeroDuration()) node.AddError("tpot", "must be over 0");
    for (size_t i = 0; i + 1 < tiers.size(); ++i) {
      if (tiers[i].name == tier.name) node.AddError("name", absl::StrCat("two tiers are named ", tier.name));
    }
  }
  return tiers;
}

RouterSettings ReadRouter(ConfigNode node, const std::filesystem::path& folder) {
  RouterSettings router;
  router.replicas = static_cast<int>(node.GetInt("replicas", router.replicas, 1, 64));
  router.listen = ReadListenAddress(node, "listen", router.listen);
  router.http_listen = ReadHttpAddress(node, "http_listen", router.http_listen);
  router.metrics_listen = ReadHttpAddress(node, "metrics_listen", router.metrics_listen);
  const int last = 65535 - kPortsOfRouter * (router.replicas - 1);
  for (const auto& [key, address] : {std::pair<const char*, const std::string&>{"listen", router.listen},
                                     {"http_listen", router.http_listen},
                                     {"metrics_listen", router.metrics_listen}}) {
    int port = 0;
    if (absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port) && port > last) {
      node.AddError(
          key, absl::StrCat("with replicas: ", router.replicas, " the port must be at most ", last, ", got ", port));
    }
  }
  router.max_active_requests = node.GetInt("max_active_requests", router.max_active_requests, 1, kMaxCount);
  router.max_retries = node.GetInt("max_retries", router.max_retries, 0, 100);
  router.conditional_prefill_tokens =
      node.GetInt("conditional_prefill_tokens", router.conditional_prefill_tokens, 0, kMaxCount);
  router.service_tiers = ReadServiceTiers(node);
  ConfigNode tracing = node.GetMap("tracing");
  router.otlp_endpoint = ReadHttpAddress(tracing, "otlp_endpoint", router.otlp_endpoint);
  router.trace_share = tracing.GetNumber("share", router.trace_share, 0, 1);
  router.api_keys = ReadApiKeys(node, folder);
  router.access_log = node.GetBool("access_log", router.access_log);
  router.splits_chat_output = node.GetEnum("chat_output", "auto", {"auto", "text"}) == "auto";
  const std::string placement = node.GetEnum("placement", "predicted", {"predicted", "least_load", "round_robin"});
  if (placement == "least_load") router.placement = PlacementPolicy::kLeastLoad;
  if (placement == "round_robin") router.placement = PlacementPolicy::kRoundRobin;
  router.random_ties = node.GetEnum("ties", "random", {"random", "by_name"}) == "random";
  router.worker_timeout = node.GetDuration("worker_timeout", router.worker_timeout);
  router.placement_timeout = node.GetDuration("placement_timeout", router.placement_timeout);
  if (router.worker_timeout < kLeastWorkerTimeout) {
    node.AddError("worker_timeout", absl::StrCat("must be at least ", absl::FormatDuration(kLeastWorkerTimeout),
                                                 ": workers report every 250ms"));
  }
  return router;
}

Parallelism ReadParallelism(ConfigNode node) {
  Parallelism parallelism;
  parallelism.tp = static_cast<int>(node.GetInt("tp", 1, 1, 1024));
  parallelism.dp = static_cast<int>(node.GetInt("dp", 1, 1, 1024));
  parallelism.ep = static_cast<int>(node.GetInt("ep", 1, 1, 1024));
  parallelism.pp = static_cast<int>(node.GetInt("pp", 1, 1, 1024));
  for (const auto& [key, value] : {std::pair{"dp", parallelism.dp}, {"ep", parallelism.ep}, {"pp", parallelism.pp}}) {
    if (value != 1) {
      node.AddError(key, absl::StrCat("only tp is there yet; set it to 1 and use tp or replicas instead, got ", value));
    }
  }
  return parallelism;
}

PoolSettings ReadPool(ConfigNode node) {
  PoolSettings pool;
  pool.where = node.Where("name");
  pool.name = node.RequireString("name");
  pool.role = node.GetEnum("role", "", {"prefill", "decode"}) == "decode" ? Role::kDecode : Role::kPrefill;
  pool.replicas = static_cast<int>(node.GetInt("replicas", 1, 1, 1000));
  pool.device = node.GetEnum("device", "cpu", {"cpu", "cuda"});
  const bool on_gpu = pool.device == "cuda";
  if (node.Has("first_gpu") && !on_gpu) node.AddError("first_gpu", "is for device cuda; remove it");
  if (node.Has("first_gpu")) pool.first_gpu = static_cast<int>(node.GetInt("first_gpu", 0, 0, 1023));
  if (on_gpu) {
    pool.kv_memory_bytes = 0;
    pool.max_step_tokens = kGpuStepTokens;
    pool.max_running_requests = kGpuRunningRequests;
  }
  pool.threads = static_cast<int>(node.GetInt("threads", 1, 1, 1024));
  pool.parallelism = ReadParallelism(node.GetMap("parallelism"));
  pool.kv_memory_bytes = node.GetBytes("kv_memory", pool.kv_memory_bytes);
  if (pool.kv_memory_bytes <= 0 && (!on_gpu || node.Has("kv_memory"))) node.AddError("kv_memory", "must be over 0 B");
  pool.page_tokens = static_cast<int>(node.GetInt("page_tokens", pool.page_tokens, 1, 1024));
  ConfigNode limits = node.GetMap("limits");
  pool.max_step_tokens =
      limits.GetInt("max_step_tokens", pool.max_step_tokens, 1, on_gpu ? kMaxGpuStepTokens : kMaxCount);
  pool.max_prefill_beside_decode =
      limits.GetInt("max_prefill_beside_decode", pool.max_step_tokens, 1, pool.max_step_tokens);
  pool.max_running_requests =
      limits.GetInt("max_running_requests", pool.max_running_requests, 1, on_gpu ? kMaxGpuRunningRequests : kMaxCount);
  pool.max_waiting_requests = limits.GetInt("max_waiting_requests", pool.max_waiting_requests, 1, kMaxCount);
  pool.kv_hold = limits.GetDuration("kv_hold", pool.kv_hold);
  if (pool.max_step_tokens < pool.max_running_requests && pool.role == Role::kDecode) {
    limits.AddError("max_step_tokens",
                    absl::StrCat("must be at least max_running_requests (", pool.max_running_requests,
                                 "): each running request needs one token a step"));
  }
  pool.host = node.GetString("host", pool.host);
  pool.domain = node.GetString("domain", pool.host);
  ConfigNode ports = node.GetMap("ports");
  // The last replica's port must exist, too.
  const int64_t last = 65535 - (pool.replicas - 1);
  pool.service_port = static_cast<int>(ports.GetInt("service", 0, 0, last));
  pool.link_port = static_cast<int>(ports.GetInt("link", 0, 0, last));
  pool.metrics_port = static_cast<int>(ports.GetInt("metrics", 0, 0, last));
  return pool;
}

LinkSettings ReadLinks(ConfigNode node, bool on_gpus) {
  LinkSettings links;
  if (on_gpus) links.transports = {"nvlink", "ucx", "ucx_staged", "ucx_host_staged"};
  const std::vector<std::string> known =
      on_gpus ? links.transports : std::vector<std::string>{"shm", "ucx", "ucx_staged"};
  links.transports = node.GetStrings("transports", links.transports);
  for (const std::string& transport : links.transports) {
    if (std::find(known.begin(), known.end(), transport) == known.end()) {
      node.AddError("transports", absl::StrCat("expected some of ", absl::StrJoin(known, ", "),
                                               on_gpus ? " for device cuda" : "", "; got \"", transport, "\""));
    }
  }
  if (links.transports.empty()) node.AddError("transports", "must allow at least one");
  ConfigNode expected = node.GetMap("expected_rate");
  for (const std::string& transport : known) {
    if (expected.Has(transport)) links.expected_rates[transport] = expected.GetRate(transport, 1);
  }
  links.minimum_share = node.GetNumber("minimum_share", links.minimum_share, 0, 1);
  links.checksums = node.GetBool("checksums", links.checksums);
  links.layer_groups = static_cast<int>(node.GetInt("layer_groups", links.layer_groups, 1, 1000));
  links.heartbeat = node.GetDuration("heartbeat", links.heartbeat);
  links.missed_heartbeats = static_cast<int>(node.GetInt("missed_heartbeats", links.missed_heartbeats, 1, 1000));
  if (links.heartbeat <= absl::ZeroDuration()) node.AddError("heartbeat", "must be over 0");
  return links;
}

// Adds an error at each pool that uses a port that another process has.
void CheckPorts(const Topology& topology, ConfigNode& root, std::vector<ConfigNode>& pools) {
  struct User {
    std::string host, process;
  };
  auto is_any = [](const std::string& host) { return host == "0.0.0.0" || host == "[::]"; };
  std::map<std::string, std::vector<User>> users;  // By port, or by path of a Unix socket.
  for (const ProcessPlan& process : topology.Processes()) {
    for (const std::string& address :
         {process.service_address, process.http_address, process.link_address, process.metrics_address}) {
      if (address.empty() || absl::EndsWith(address, ":0")) continue;
      const size_t colon = address.rfind(':');
      if (colon == std::string::npos) continue;  // An error of its own.
      const std::string host = address.substr(0, colon);
      std::vector<User>& others = users[address.substr(colon)];
      for (const User& other : others) {
        if (other.host != host && !is_any(other.host) && !is_any(host)) continue;
        ConfigNode& node = process.pool < 0 ? root : pools[process.pool];
        node.AddError(process.pool < 0 ? "router" : "ports",
                      absl::StrCat(address, " is used by ", other.process, " and by ", process.name,
                                   "; give one of them another port"));
        break;
      }
      others.push_back({host, process.name});
    }
  }
}

// Processes join each other, and who can reach one of them could join them.
void CheckSecret(const Topology& topology, ConfigNode& root, std::vector<ConfigNode>& pools) {
  if (topology.tls.is_set() || !NeedsSecret(topology)) return;
  const auto need = [](ConfigNode& node, const char* key, absl::string_view address) {
    if (!IsReachable(address)) return;
    node.AddError(key, absl::StrCat(address,
                                    " can be reached from other machines: whoever does could join the cluster; set "
                                    "cluster.secret_file or tls"));
  };
  need(root, "router", topology.router.listen);
  for (size_t i = 0; i < pools.size(); ++i) need(pools[i], "host", topology.pools[i].host);
}

// All workers of a model compute alike, or their KV would not go together.
void CheckDevices(Topology& topology, ConfigNode& root, std::vector<ConfigNode>& pools, bool on_gpus) {
  for (size_t i = 0; i < pools.size(); ++i) {
    if ((topology.pools[i].device == "cuda") != on_gpus) {
      pools[i].AddError("device", "pools on CPUs and on GPUs cannot be mixed: their KV differs in its last bits");
    }
  }
  std::map<std::pair<std::string, int>, ProcessPlan> users;  // Of each GPU.
  for (const ProcessPlan& process : topology.Processes()) {
    if (!process.gpu.has_value()) continue;
    const PoolSettings& pool = topology.pools[process.pool];
    const auto [user, is_first] = users.emplace(std::pair(pool.host, *process.gpu), process);
    const PoolSettings& other = topology.pools[user->second.pool];
    // Ranks wait for each other on their GPUs, which nobody else may hold up.
    const bool has_ranks = pool.parallelism.tp > 1 || other.parallelism.tp > 1;
    if (is_first || (!has_ranks && pool.kv_memory_bytes > 0 && other.kv_memory_bytes > 0)) continue;
    pools[process.pool].AddError(
        "first_gpu", absl::StrCat("GPU ", *process.gpu, " is used by ", user->second.name, " and by ", process.name,
                                  "; give one of them another", has_ranks ? "" : ", or both a kv_memory"));
  }
  ModelSettings& model = topology.model;
  if (!model.has_precision && on_gpus) model.precision = Precision::kBf16;
  if ((model.precision == Precision::kBf16) != on_gpus) {
    root.AddError("model", on_gpus ? "precision: device cuda computes in bf16; remove the setting"
                                   : "precision: bf16 is for device cuda; remove the setting");
  }
}

void CheckPools(const Topology& topology, ConfigNode& root) {
  std::map<std::string, std::string> names;
  bool has_decode = false;
  const bool has_prefill = std::any_of(topology.pools.begin(), topology.pools.end(),
                                       [](const PoolSettings& pool) { return pool.role == Role::kPrefill; });
  for (const PoolSettings& pool : topology.pools) {
    has_decode |= pool.role == Role::kDecode;
    auto [entry, inserted] = names.emplace(pool.name, pool.where);
    if (!inserted) {
      root.AddError("pools", absl::StrCat("two pools are named ", pool.name, " (the other at ", entry->second, ")"));
    }
    if (pool.name == "router") root.AddError("pools", "a pool cannot be named router");
    if (pool.parallelism.tp > 1 && has_prefill) {
      root.AddError("pools", absl::StrCat("pool ", pool.name, " (", pool.where,
                                          ") has parallelism.tp: KV is not handed over between workers of several "
                                          "ranks yet; use pools with role decode only, which prefill, too"));
    }
  }
  if (!has_decode) {
    root.AddError("pools", "needs at least one pool with role decode: it generates the tokens");
  }
  std::set<std::string> processes;
  for (const ProcessPlan& process : topology.Processes()) {
    if (!processes.insert(process.name).second) {
      root.AddError("pools", absl::StrCat("two processes would be named ", process.name, "; rename a pool"));
    }
  }
}

// A router's address: a port further on, or another path of a Unix socket. What is off, or a port that is drawn, stays.
std::string OfReplica(const std::string& address, int replica) {
  if (replica == 0 || address.empty()) return address;
  if (absl::StartsWith(address, "unix:")) return absl::StrCat(address, "-", replica);
  const size_t colon = address.rfind(':');
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0) return address;
  return absl::StrCat(address.substr(0, colon + 1), port + kPortsOfRouter * replica);
}

std::string WithPort(const std::string& host, int base, int replica) {
  return absl::StrCat(host, ":", base == 0 ? 0 : base + replica);
}

absl::StatusOr<Topology> Read(ConfigNode root, const std::string& file) {
  Topology topology;
  topology.file = file;
  std::filesystem::path folder = std::filesystem::path(file).parent_path();
  topology.model = ReadModel(root.GetMap("model"), folder);
  topology.router = ReadRouter(root.GetMap("router"), folder);
  std::vector<ConfigNode> pools = root.GetList("pools");
  for (const ConfigNode& pool : pools) topology.pools.push_back(ReadPool(pool));
  const bool on_gpus = !topology.pools.empty() && topology.pools[0].device == "cuda";
  topology.links = ReadLinks(root.GetMap("links"), on_gpus);
  ConfigNode cluster = root.GetMap("cluster");
  topology.cluster_secret = ReadSecretSource(cluster, "secret", folder);
  if (root.Has("tls")) topology.tls = ReadTls(root.GetMap("tls"), folder);
  CheckDevices(topology, root, pools, on_gpus);
  CheckPools(topology, root);
  CheckPorts(topology, root, pools);
  CheckSecret(topology, root, pools);
  RETURN_IF_ERROR(root.Finish());
  return topology;
}

}  // namespace

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kPrefill:
      return "prefill";
    case Role::kDecode:
      return "decode";
  }
  return "";
}

absl::StatusOr<Topology> Topology::Load(const std::string& path) {
  ASSIGN_OR_RETURN(ConfigNode root, ConfigNode::ParseFile(path));
  return Read(std::move(root), path);
}

absl::StatusOr<Topology> Topology::Parse(const std::string& text, const std::string& name) {
  ASSIGN_OR_RETURN(ConfigNode root, ConfigNode::ParseText(text, name));
  return Read(std::move(root), name);
}

std::vector<ProcessPlan> Topology::Processes() const {
  std::vector<ProcessPlan> processes;
  for (int replica = 0; replica < router.replicas; ++replica) {
    processes.push_back({.name = replica == 0 ? "router" : absl::StrCat("router-", replica),
                         .program = "tandem-router",
                         .replica = replica,
                         .service_address = OfReplica(router.listen, replica),
                         .http_address = OfReplica(router.http_listen, replica),
                         .metrics_address = OfReplica(router.metrics_listen, replica)});
  }
  std::map<std::string, int> next_gpu;  // By host.
  for (int i = 0; i < pools.size(); ++i) {
    const PoolSettings& pool = pools[i];
    int& gpu = next_gpu[pool.host];
    if (pool.first_gpu >= 0) gpu = pool.first_gpu;
    for (int replica = 0; replica < pool.replicas; ++replica) {
      ProcessPlan process{.name = absl::StrCat(pool.name, "-", replica),
                          .program = absl::StrCat("tandem-", RoleName(pool.role)),
                          .pool = i,
                          .replica = replica};
      if (pool.device == "cuda") process.gpu = gpu++;
      process.service_address = WithPort(pool.host, pool.service_port, replica);
      process.metrics_address = WithPort(pool.host, pool.metrics_port, replica);
      if (pool.role == Role::kDecode) {
        process.link_address = WithPort(pool.host, pool.link_port, replica);
      }
      process.domain = pool.domain;
      processes.push_back(process);
      for (int rank = 1; rank < pool.parallelism.tp; ++rank) {
        ProcessPlan& other = processes.emplace_back(process);
        other.name = absl::StrCat(process.name, "-rank-", rank);
        other.tp_rank = rank;
        if (other.gpu.has_value()) other.gpu = gpu++;
        other.service_address = other.metrics_address = other.link_address = "";
      }
    }
  }
  return processes;
}

std::vector<std::string> Topology::RouterAddresses() const {
  std::vector<std::string> addresses;
  for (int replica = 0; replica < router.replicas; ++replica) addresses.push_back(OfReplica(router.listen, replica));
  return addresses;
}

absl::StatusOr<ProcessPlan> Topology::FindProcess(absl::string_view name) const {
  std::vector<std::string> names;
  for (ProcessPlan& process : Processes()) {
    if (process.name == name) return std::move(process);
    names.push_back(process.name);
  }
  return absl::NotFoundError(
      absl::StrCat(file, " has no process named ", name, "; it has ", absl::StrJoin(names, ", ")));
}

}  // namespace tandem
