#include "common/topology_text.h"

#include <yaml-cpp/yaml.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

// Every key, none with its default.
constexpr char kAll[] = R"(model: {path: /m/model.gguf, served_name: m, precision: full, kv_cache_dtype: fp8}
router:
  replicas: 2
  listen: 127.0.0.1:9000
  http_listen: 127.0.0.1:9001
  metrics_listen: 127.0.0.1:9002
  max_active_requests: 9
  max_retries: 8
  conditional_prefill_tokens: 7
  chat_output: text
  service_tiers:
    - {name: default, priority: -1, ttft: 2.5s, tpot: 40ms}
    - {name: batch, priority: 3}
  tracing: {otlp_endpoint: "127.0.0.1:4318", share: 0.25}
  api_keys:
    - {name: ann, key_file: /k/ann, max_active_requests: 5, weight: 0.1, operator: true}
    - {name: bob, key_env: BOB}
  access_log: true
  placement: least_load
  ties: by_name
  worker_timeout: 750ms
  placement_timeout: 1m30s
pools:
  - name: p
    role: prefill
    replicas: 3
    threads: 2
    kv_memory: 1000 B
    page_tokens: 32
    limits: {max_step_tokens: 100, max_prefill_beside_decode: 50, max_running_requests: 40, max_waiting_requests: 30, kv_hold: 20s}
    host: 127.0.0.2
    domain: rack-1
    ports: {service: 9100, link: 9200, metrics: 9300}
  - {name: d, role: decode, kv_memory: 3 GiB}
links:
  transports: [ucx]
  expected_rate: {ucx: 200 MB/s}
  minimum_share: 0.125
  checksums: true
  layer_groups: 5
  heartbeat: 100ms
  missed_heartbeats: 6
cluster: {secret_file: /k/cluster}
tls: {certificate: /t/c.pem, key: /t/k.pem, authorities: /t/a.pem, client_authorities: /t/b.pem, name: here}
)";

constexpr char kOnGpus[] = R"(model: {path: /m/model, served_name: m}
pools:
  - {name: d, role: decode, device: cuda, first_gpu: 4, parallelism: {tp: 2}}
cluster: {secret_env: SECRET}
)";

// Everything of `wanted` is in `got`.
void ExpectHas(const YAML::Node& got, const YAML::Node& wanted, const std::string& where) {
  if (wanted.IsScalar()) {
    ASSERT_TRUE(got.IsDefined() && got.IsScalar()) << where;
    EXPECT_EQ(got.Scalar(), wanted.Scalar()) << where;
  } else if (wanted.IsSequence()) {
    ASSERT_EQ(got.size(), wanted.size()) << where;
    for (size_t i = 0; i < wanted.size(); ++i) ExpectHas(got[i], wanted[i], absl::StrCat(where, "[", i, "]"));
  } else {
    ASSERT_TRUE(got.IsDefined()) << where;
    for (const auto& entry : wanted) {
      const std::string key = entry.first.Scalar();
      ExpectHas(got[key], entry.second, absl::StrCat(where, ".", key));
    }
  }
}

TEST(TopologyTextTest, HasEverySetting) {
  for (const char* file : {kAll, kOnGpus}) {
    ASSERT_OK_AND_ASSIGN(const Topology topology, Topology::Parse(file, "/t/t.yaml"));
    const std::string text = TopologyText(topology);
    ExpectHas(YAML::Load(text), YAML::Load(file), "");
    ASSERT_OK_AND_ASSIGN(const Topology again, Topology::Parse(text, "/elsewhere/t.yaml"));
    EXPECT_EQ(TopologyText(again), text);
  }
}

TEST(TopologyTextTest, SaysWhatWasLeftToItsDefault) {
  ASSERT_OK_AND_ASSIGN(const Topology topology, Topology::Load(SourcePath("deploy/topologies/laptop.yaml")));
  const YAML::Node text = YAML::Load(TopologyText(topology));
  EXPECT_EQ(text["router"]["max_retries"].as<int>(), 3);
  EXPECT_EQ(text["router"]["listen"].Scalar(), "127.0.0.1:7070");
  EXPECT_EQ(text["pools"][0]["host"].Scalar(), "127.0.0.1");
  EXPECT_EQ(text["pools"][0]["limits"]["kv_hold"].Scalar(), "30s");
  EXPECT_EQ(text["links"]["heartbeat"].Scalar(), "250ms");
}

}  // namespace
}  // namespace tandem
