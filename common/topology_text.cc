#include "common/topology_text.h"

#include <yaml-cpp/yaml.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace tandem {
namespace {

// As ParseBytes reads it, without rounding.
std::string ExactBytes(int64_t bytes) {
  for (const auto& [unit, size] : {std::pair<const char*, int64_t>{" GiB", int64_t{1} << 30},
                                   {" MiB", int64_t{1} << 20},
                                   {" KiB", int64_t{1} << 10}}) {
    if (bytes % size == 0) return absl::StrCat(bytes / size, unit);
  }
  return absl::StrCat(bytes, " B");
}

// A mapping in the order in which keys are set.
class Section {
 public:
  template <typename T>
  Section& Set(const char* key, const T& value) {
    node_[key] = value;
    return *this;
  }
  Section& Set(const char* key, double value) { return Set(key, absl::StrFormat("%.15g", value)); }
  Section& Set(const char* key, absl::Duration value) { return Set(key, absl::FormatDuration(value)); }
  Section& Set(const char* key, const Section& section) { return Set(key, section.node_); }
  Section& SetList(const char* key, const std::vector<Section>& sections) {
    if (sections.empty()) return *this;
    for (const Section& section : sections) node_[key].push_back(section.node_);
    return *this;
  }
  // Where it says something.
  Section& SetSome(const char* key, const std::string& value) { return value.empty() ? *this : Set(key, value); }
  Section& SetSecret(const std::string& key, const SecretSource& source) {
    SetSome((key + "_file").c_str(), source.file);
    return SetSome((key + "_env").c_str(), source.env);
  }
  const YAML::Node& node() const { return node_; }

 private:
  YAML::Node node_{YAML::NodeType::Map};
};

Section ModelSection(const ModelSettings& model) {
  Section section;
  section.Set("path", model.path).Set("served_name", model.served_name);
  section.Set("precision", model.precision == Precision::kFull   ? "full"
                           : model.precision == Precision::kBf16 ? "bf16"
                                                                 : "quantised");
  return section.Set("kv_cache_dtype", model.float8_kv ? "fp8" : "auto");
}

Section RouterSection(const RouterSettings& router) {
  std::vector<Section> tiers, keys;
  for (const ServiceTier& tier : router.service_tiers) {
    Section& section = tiers.emplace_back().Set("name", tier.name).Set("priority", tier.priority);
    if (tier.ttft < absl::InfiniteDuration()) section.Set("ttft", tier.ttft);
    if (tier.tpot < absl::InfiniteDuration()) section.Set("tpot", tier.tpot);
  }
  for (const ApiKeySettings& key : router.api_keys) {
    Section& section = keys.emplace_back().Set("name", key.name).SetSecret("key", key.key);
    if (key.max_active_requests > 0) section.Set("max_active_requests", key.max_active_requests);
    section.Set("weight", key.weight).Set("operator", key.is_operator);
  }
  Section section;
  section.Set("replicas", router.replicas)
      .Set("listen", router.listen)
      .Set("http_listen", router.http_listen)
      .Set("metrics_listen", router.metrics_listen)
      .Set("max_active_requests", router.max_active_requests)
      .Set("max_retries", router.max_retries)
      .Set("conditional_prefill_tokens", router.conditional_prefill_tokens)
      .Set("chat_output", router.splits_chat_output ? "auto" : "text")
      .SetList("service_tiers", tiers)
      .Set("tracing", Section().Set("otlp_endpoint", router.otlp_endpoint).Set("share", router.trace_share))
      .SetList("api_keys", keys)
      .Set("access_log", router.access_log)
      .Set("placement", router.placement == PlacementPolicy::kLeastLoad    ? "least_load"
                        : router.placement == PlacementPolicy::kRoundRobin ? "round_robin"
                                                                           : "predicted")
      .Set("ties", router.random_ties ? "random" : "by_name")
      .Set("worker_timeout", router.worker_timeout)
      .Set("placement_timeout", router.placement_timeout);
  return section;
}

Section PoolSection(const PoolSettings& pool) {
  const Parallelism& parallelism = pool.parallelism;
  Section section;
  section.Set("name", pool.name).Set("role", std::string(RoleName(pool.role))).Set("replicas", pool.replicas);
  section.Set("device", pool.device);
  if (pool.first_gpu >= 0) section.Set("first_gpu", pool.first_gpu);
  section.Set("threads", pool.threads)
      .Set("parallelism", Section()
                              .Set("tp", parallelism.tp)
                              .Set("dp", parallelism.dp)
                              .Set("ep", parallelism.ep)
                              .Set("pp", parallelism.pp));
  if (pool.kv_memory_bytes > 0) section.Set("kv_memory", ExactBytes(pool.kv_memory_bytes));
  section.Set("page_tokens", pool.page_tokens)
      .Set("limits", Section()
                         .Set("max_step_tokens", pool.max_step_tokens)
                         .Set("max_prefill_beside_decode", pool.max_prefill_beside_decode)
                         .Set("max_running_requests", pool.max_running_requests)
                         .Set("max_waiting_requests", pool.max_waiting_requests)
                         .Set("kv_hold", pool.kv_hold))
      .Set("host", pool.host)
      .Set("domain", pool.domain)
      .Set("ports",
           Section().Set("service", pool.service_port).Set("link", pool.link_port).Set("metrics", pool.metrics_port));
  return section;
}

Section LinksSection(const LinkSettings& links) {
  Section section, rates;
  for (const auto& [transport, rate] : links.expected_rates) {
    rates.Set(transport.c_str(), absl::StrFormat("%.10g MB/s", rate / 1e6));
  }
  section.Set("transports", links.transports);
  if (!links.expected_rates.empty()) section.Set("expected_rate", rates);
  return section.Set("minimum_share", links.minimum_share)
      .Set("checksums", links.checksums)
      .Set("layer_groups", links.layer_groups)
      .Set("heartbeat", links.heartbeat)
      .Set("missed_heartbeats", links.missed_heartbeats);
}

}  // namespace

std::string TopologyText(const Topology& topology) {
  std::vector<Section> pools;
  for (const PoolSettings& pool : topology.pools) pools.push_back(PoolSection(pool));
  Section all;
  all.Set("model", ModelSection(topology.model)).Set("router", RouterSection(topology.router));
  all.SetList("pools", pools).Set("links", LinksSection(topology.links));
  if (topology.cluster_secret.is_set()) all.Set("cluster", Section().SetSecret("secret", topology.cluster_secret));
  if (const TlsSettings& tls = topology.tls; tls.is_set()) {
    all.Set("tls", Section()
                       .Set("certificate", tls.certificate.path)
                       .Set("key", tls.key.path)
                       .Set("authorities", tls.authorities.path)
                       .SetSome("client_authorities", tls.client_authorities.path)
                       .Set("name", tls.name));
  }
  return absl::StrCat(YAML::Dump(all.node()), "\n");
}

}  // namespace tandem
