#include "common/topology.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "common/cluster_secret.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

constexpr char kGood[] = R"(model:
  path: model.gguf
  served_name: m
router:
  listen: 127.0.0.1:9000
pools:
  - name: prefill
    role: prefill
    replicas: 2
    kv_memory: 64 MiB
    ports: {service: 9100, metrics: 9200}
  - name: decode
    role: decode
    ports: {service: 9110, link: 9120, metrics: 9210}
links:
  transports: [shm]
)";

TEST(TopologyTest, LinksAreJudgedByTheRatesThatTheyShouldReach) {
  const std::string text = absl::StrReplaceAll(
      kGood, {{"transports: [shm]", "expected_rate: {shm: 5 GB/s, ucx: 200 MB/s}\n  minimum_share: 0.25"}});
  ASSERT_OK_AND_ASSIGN(Topology topology, Topology::Parse(text, "/x/t.yaml"));
  EXPECT_EQ(topology.links.expected_rates, (std::map<std::string, double>{{"shm", 5e9}, {"ucx", 2e8}}));
  EXPECT_EQ(topology.links.minimum_share, 0.25);
}

TEST(TopologyTest, LeavesAPathThatNoFileCanHaveToWhoOpensIt) {
  const std::string name(300, 'm');
  ASSERT_OK_AND_ASSIGN(Topology topology,
                       Topology::Parse(absl::StrReplaceAll(kGood, {{"model.gguf", name}}), "/t.yaml"));
  EXPECT_EQ(topology.model.path, "/" + name);
}

TEST(TopologyTest, KvIsOfThePrecisionsTypeOrOfFloat8) {
  ASSERT_OK_AND_ASSIGN(Topology topology, Topology::Parse(kGood, "/t.yaml"));
  EXPECT_FALSE(topology.model.float8_kv);
  const std::string text =
      absl::StrReplaceAll(kGood, {{"served_name: m\n", "served_name: m\n  kv_cache_dtype: fp8\n"}});
  ASSERT_OK_AND_ASSIGN(topology, Topology::Parse(text, "/t.yaml"));
  EXPECT_TRUE(topology.model.float8_kv);
}

TEST(TopologyTest, ResolvesProcessesAndPorts) {
  ASSERT_OK_AND_ASSIGN(Topology topology, Topology::Parse(kGood, "/x/t.yaml"));
  EXPECT_EQ(topology.model.path, "/x/model.gguf");
  std::vector<ProcessPlan> processes = topology.Processes();
  ASSERT_EQ(processes.size(), 4);
  EXPECT_EQ(processes[0].name, "router");
  EXPECT_EQ(processes[2].name, "prefill-1");
  EXPECT_EQ(processes[2].service_address, "127.0.0.1:9101");
  EXPECT_EQ(processes[3].link_address, "127.0.0.1:9120");
  EXPECT_THAT(topology.FindProcess("decode-7"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("it has router, prefill-0")));
}

TEST(TopologyTest, ReplicasOnGpusGetOneEach) {
  const std::string text =
      absl::StrReplaceAll(kGood, {{"replicas: 2\n    kv_memory: 64 MiB", "replicas: 2\n    device: cuda"},
                                  {"role: decode\n", "role: decode\n    device: cuda\n"},
                                  {"links:\n  transports: [shm]\n", ""}});
  ASSERT_OK_AND_ASSIGN(Topology topology, Topology::Parse(text, "/x/t.yaml"));
  std::vector<ProcessPlan> processes = topology.Processes();
  EXPECT_EQ(processes[0].gpu, std::nullopt);
  EXPECT_EQ(processes[1].gpu, 0);
  EXPECT_EQ(processes[2].gpu, 1);
  EXPECT_EQ(processes[3].gpu, 2);
  EXPECT_EQ(topology.model.precision, Precision::kBf16);
  EXPECT_EQ(topology.pools[0].kv_memory_bytes, 0);  // What is free.
  EXPECT_EQ(topology.links.transports, (std::vector<std::string>{"nvlink", "ucx", "ucx_staged", "ucx_host_staged"}));
  ASSERT_OK_AND_ASSIGN(
      topology, Topology::Parse(absl::StrReplaceAll(text, {{"role: decode\n", "role: decode\n    first_gpu: 6\n"}}),
                                "/x/t.yaml"));
  EXPECT_EQ(topology.Processes()[3].gpu, 6);
}

TEST(TopologyTest, OnlyThisMachinesAddressesCannotBeReached) {
  for (const char* own :
       {"", "unix:/r", "127.0.0.1:1", "127.0.0.5:1", "localhost:1", "[::1]:1", "127.0.0.1", "[::1]"}) {
    EXPECT_FALSE(IsReachable(own)) << own;
  }
  for (const char* open : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "node-7:1", "node-7", "127.example.com:1"}) {
    EXPECT_TRUE(IsReachable(open)) << open;
  }
}

TEST(TopologyTest, ASecretOfTheEnvironmentOrTlsLetsItBeReached) {
  const std::string open = absl::StrReplaceAll(kGood, {{"127.0.0.1:9000", "0.0.0.0:9000"}});
  EXPECT_THAT(Topology::Parse(open, "t.yaml").status(), testing::Not(IsOk()));
  EXPECT_THAT(Topology::Parse(open + "tls: {certificate: c, key: k, authorities: a}\n", "t.yaml"), IsOk());
  setenv(kDrawnSecretVariable, "chosen-0123456789", /*overwrite=*/1);
  EXPECT_THAT(Topology::Parse(open, "t.yaml"), IsOk());
  unsetenv(kDrawnSecretVariable);
}

TEST(TopologyTest, RoutersHaveTheNextAddresses) {
  ASSERT_OK_AND_ASSIGN(Topology topology,
                       Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                                       "router: {replicas: 3, listen: '0.0.0.0:7000', http_listen: '127.0.0.1:0', "
                                       "metrics_listen: ''}\n"
                                       "pools: [{name: decode, role: decode}]\ncluster: {secret_env: X}\n",
                                       "/x/t.yaml"));
  EXPECT_THAT(topology.RouterAddresses(), testing::ElementsAre("0.0.0.0:7000", "0.0.0.0:7010", "0.0.0.0:7020"));
  const std::vector<ProcessPlan> processes = topology.Processes();
  ASSERT_EQ(processes.size(), 4);
  EXPECT_EQ(processes[0].name, "router");
  EXPECT_EQ(processes[2].name, "router-2");
  EXPECT_EQ(processes[2].service_address, "0.0.0.0:7020");
  EXPECT_EQ(processes[2].http_address, "127.0.0.1:0");
  EXPECT_EQ(processes[2].metrics_address, "");
  ASSERT_OK_AND_ASSIGN(topology, Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                                                 "router: {replicas: 2, listen: 'unix:/r'}\n"
                                                 "pools: [{name: decode, role: decode}]\n",
                                                 "/x/t.yaml"));
  EXPECT_EQ(topology.Processes()[1].service_address, "unix:/r-1");
  // The defaults have room.
  EXPECT_THAT(Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                              "router: {replicas: 3}\n"
                              "pools: [{name: decode, role: decode}]\n",
                              "/x/t.yaml"),
              IsOk());
  EXPECT_THAT(
      Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                      "router: {replicas: 2, listen: '127.0.0.1:7070', metrics_listen: '127.0.0.1:7080'}\n"
                      "pools: [{name: decode, role: decode}]\n",
                      "/x/t.yaml"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("127.0.0.1:7080 is used by router and by router-1")));
  EXPECT_THAT(Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                              "router: {replicas: 2, listen: '127.0.0.1:65530'}\n"
                              "pools: [{name: decode, role: decode}]\n",
                              "/x/t.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("router.listen: with replicas: 2 the port must be at most 65525, got 65530")));
}

TEST(TopologyTest, ProcessesHaveNamesOfTheirOwn) {
  EXPECT_THAT(Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                              "pools:\n"
                              "  - {name: decode, role: decode, parallelism: {tp: 3}}\n"
                              "  - {name: decode-0-rank, role: decode, replicas: 2}\n",
                              "t.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("two processes would be named decode-0-rank-1; rename a pool")));
}

TEST(TopologyTest, RanksAreProcessesWithAGpuEachAndNoAddresses) {
  ASSERT_OK_AND_ASSIGN(Topology topology, Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                                                          "pools:\n"
                                                          "  - name: serve\n"
                                                          "    role: decode\n"
                                                          "    device: cuda\n"
                                                          "    replicas: 2\n"
                                                          "    parallelism: {tp: 2}\n"
                                                          "    ports: {service: 9100, link: 9110, metrics: 9120}\n",
                                                          "/x/t.yaml"));
  const std::vector<ProcessPlan> processes = topology.Processes();
  ASSERT_EQ(processes.size(), 5);
  const char* names[] = {"router", "serve-0", "serve-0-rank-1", "serve-1", "serve-1-rank-1"};
  for (int i = 1; i < 5; ++i) {
    EXPECT_EQ(processes[i].name, names[i]);
    EXPECT_EQ(processes[i].gpu, i - 1);
    EXPECT_EQ(processes[i].tp_rank, (i - 1) % 2);
  }
  EXPECT_EQ(processes[3].service_address, "127.0.0.1:9101");
  EXPECT_EQ(processes[4].service_address + processes[4].link_address + processes[4].metrics_address, "");
}

TEST(TopologyTest, RanksShareTheirGpusWithNobody) {
  EXPECT_THAT(Topology::Parse("model: {path: m.gguf, served_name: m}\n"
                              "pools:\n"
                              "  - {name: a, role: decode, device: cuda, parallelism: {tp: 2}, kv_memory: 1 GiB}\n"
                              "  - {name: b, role: decode, device: cuda, first_gpu: 1, kv_memory: 1 GiB}\n",
                              "t.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("GPU 1 is used by a-0-rank-1 and by b-0; give one of them another")));
}

TEST(TopologyTest, TlsNeedsAllItsFilesAndFindsThemBesideTheTopology) {
  ASSERT_OK_AND_ASSIGN(
      const Topology with,
      Topology::Parse(absl::StrCat(kGood, "tls: {certificate: a.pem, key: a.key, authorities: /etc/ca.pem}\n"),
                      "/etc/tandem/t.yaml"));
  EXPECT_TRUE(with.tls.is_set());
  EXPECT_EQ(with.tls.certificate.path, "/etc/tandem/a.pem");
  EXPECT_THAT(with.tls.key.where, MatchesRegex("/etc/tandem/t.yaml:[0-9]+: tls.key"));
  EXPECT_EQ(with.tls.authorities.path, "/etc/ca.pem");
  EXPECT_EQ(with.tls.name, "tandem");
  ASSERT_OK_AND_ASSIGN(const Topology without, Topology::Parse(kGood, "t.yaml"));
  EXPECT_FALSE(without.tls.is_set());
  EXPECT_THAT(Topology::Parse(absl::StrCat(kGood, "tls: {certificate: a.pem}\n"), "t.yaml").status(),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("tls.key"), HasSubstr("tls.authorities"))));
}

TEST(TopologyTest, ListensOnLoopbackUnlessToldOtherwise) {
  ASSERT_OK_AND_ASSIGN(const Topology topology, Topology::Parse(R"(model: {path: m, served_name: m}
pools: [{name: p, role: prefill}, {name: d, role: decode}]
)",
                                                                "/t.yaml"));
  int count = 0;
  for (const ProcessPlan& process : topology.Processes()) {
    for (const std::string& address :
         {process.service_address, process.http_address, process.link_address, process.metrics_address}) {
      if (address.empty()) continue;
      ++count;
      EXPECT_THAT(address, testing::StartsWith("127.0.0.1:")) << process.name;
    }
  }
  EXPECT_EQ(count, 8);
}

TEST(TopologyTest, ReadsTheShippedFiles) {
  EXPECT_THAT(Topology::Load(SourcePath("deploy/topologies/laptop.yaml")), IsOk());
  EXPECT_THAT(Topology::Load(SourcePath("deploy/topologies/gpu_pair.yaml")), IsOk());
  EXPECT_THAT(Topology::Load(SourcePath("deploy/topologies/gpu_tensor_parallel.yaml")), IsOk());
  EXPECT_THAT(Topology::Load("/no/such.yaml"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such.yaml")));
}

struct BadTopology {
  const char* name;
  const char* from;
  const char* to;
  const char* message;  // With the line.
};

class TopologyRefuses : public testing::TestWithParam<BadTopology> {};

TEST_P(TopologyRefuses, WithFileLineAndFix) {
  const BadTopology& bad = GetParam();
  EXPECT_THAT(Topology::Parse(absl::StrReplaceAll(kGood, {{bad.from, bad.to}}), "t.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(bad.message)));
}

INSTANTIATE_TEST_SUITE_P(
    Settings, TopologyRefuses,
    testing::Values(
        BadTopology{"UnknownKey", "replicas: 2", "replica: 2", "t.yaml:9: pools[0].replica: unknown key; known here: "},
        BadTopology{"UnknownTopLevelKey", "links:", "lynks:", "t.yaml:15: lynks: unknown key"},
        BadTopology{"RateWithoutUnit", "transports: [shm]", "expected_rate: {shm: 5}",
                    "t.yaml:16: links.expected_rate.shm: expected a rate such as"},
        BadTopology{"RateOfAnUnknownTransport", "transports: [shm]", "expected_rate: {rdma: 5 GB/s}",
                    "t.yaml:16: links.expected_rate.rdma: unknown key"},
        BadTopology{"ShareOverOne", "transports: [shm]", "minimum_share: 1.5",
                    "t.yaml:16: links.minimum_share: expected a number from 0 to 1, got 1.5"},
        BadTopology{"NoUnit", "64 MiB", "64", "t.yaml:10: pools[0].kv_memory: expected a size such as"},
        BadTopology{"WrongUnit", "64 MiB", "64 MB", "t.yaml:10: pools[0].kv_memory"},
        BadTopology{"NotANumber", "replicas: 2", "replicas: two",
                    "t.yaml:9: pools[0].replicas: expected a whole number"},
        BadTopology{"OutOfRange", "replicas: 2", "replicas: 0", "from 1 to 1000, got 0"},
        BadTopology{"UnknownRole", "role: decode", "role: decoder",
                    "t.yaml:13: pools[1].role: expected one of prefill, decode"},
        BadTopology{"PortTwice", "service: 9110", "service: 9101",
                    "127.0.0.1:9101 is used by prefill-1 and by decode-0"},
        BadTopology{"PortOfTheRouter", "service: 9110", "service: 9000", "is used by router and by decode-0"},
        BadTopology{"MissingModel", "  path: model.gguf\n", "", "model.path: is missing"},
        BadTopology{"NoDecode", "role: decode", "role: prefill", "needs at least one pool with role decode"},
        BadTopology{"PoolTwice", "- name: decode", "- name: prefill", "two pools are named prefill"},
        BadTopology{"TensorParallelBesidePrefill", "replicas: 2", "parallelism: {tp: 2}",
                    "KV is not handed over between workers of several ranks yet"},
        BadTopology{"ExpertParallel", "replicas: 2", "parallelism: {ep: 2}", "only tp is there yet"},
        BadTopology{"UnknownTransport", "[shm]", "[shm, rdma]", "expected some of shm, ucx, ucx_staged; got \"rdma\""},
        BadTopology{"NoTransport", "[shm]", "[]", "must allow at least one"},
        BadTopology{"UnknownDevice", "replicas: 2", "device: tpu", "expected one of cpu"},
        BadTopology{"GpusBesideCpus", "replicas: 2", "device: cuda", "pools on CPUs and on GPUs cannot be mixed"},
        BadTopology{"GpuTwice", "- name: decode\n    role: decode",
                    "- name: p2\n    role: decode\n    device: cuda\n  - name: decode\n    role: decode\n    device: "
                    "cuda\n    first_gpu: 0",
                    "GPU 0 is used by p2-0 and by decode-0"},
        BadTopology{"StepTooLongForAGpu", "replicas: 2", "device: cuda\n    limits: {max_step_tokens: 100000}",
                    "from 1 to 65536, got 100000"},
        BadTopology{"BatchTooLargeForAGpu", "replicas: 2", "device: cuda\n    limits: {max_running_requests: 5000}",
                    "from 1 to 4096, got 5000"},
        BadTopology{"TierWithoutTime", "listen: 127.0.0.1:9000", "service_tiers: [{name: a, ttft: 0s}]",
                    "service_tiers[0].ttft: must be over 0"},
        BadTopology{"TierTwice", "listen: 127.0.0.1:9000", "service_tiers: [{name: a}, {name: a}]",
                    "two tiers are named a"},
        BadTopology{"KeyInTheFile", "listen: 127.0.0.1:9000", "api_keys: [{name: a, key: sk-1}]",
                    "router.api_keys[0].key: unknown key"},
        BadTopology{"KeyFromNowhere", "listen: 127.0.0.1:9000", "api_keys: [{name: a}]", "set key_file or key_env"},
        BadTopology{"KeyFromTwoPlaces", "listen: 127.0.0.1:9000", "api_keys: [{name: a, key_file: x, key_env: Y}]",
                    "set this or key_env, not both"},
        BadTopology{"TwoKeysOfOneOwner", "listen: 127.0.0.1:9000",
                    "api_keys: [{name: a, key_env: X}, {name: a, key_env: Y}]", "two keys are of a"},
        BadTopology{"LongPrefillBesideDecode", "replicas: 2", "limits: {max_prefill_beside_decode: 257}",
                    "max_prefill_beside_decode: expected a number from 1 to 256, got 257"},
        BadTopology{"GpuOfACpuPool", "replicas: 2", "first_gpu: 1", "first_gpu: is for device cuda"},
        BadTopology{"PrecisionOfGpus", "served_name: m", "served_name: m\n  precision: bf16",
                    "precision: bf16 is for device cuda"},
        BadTopology{"TypeOfKvThatThereIsNot", "served_name: m", "served_name: m\n  kv_cache_dtype: fp4",
                    "model.kv_cache_dtype: "},
        BadTopology{"BadAddress", "127.0.0.1:9000", "localhost", "t.yaml:5: router.listen: expected host:port"},
        BadTopology{"DrawnRouterPort", "127.0.0.1:9000", "127.0.0.1:0", "t.yaml:5: router.listen: expected host:port"},
        BadTopology{"MetricsOnAUnixSocket", "listen: 127.0.0.1:9000", "metrics_listen: unix:/x",
                    "router.metrics_listen: expected host:port"},
        BadTopology{"ImpatientRouter", "listen: 127.0.0.1:9000", "worker_timeout: 0s", "must be at least 500ms"},
        BadTopology{"EndlessTime", "listen: 127.0.0.1:9000", "placement_timeout: inf", "placement_timeout"},
        BadTopology{"PortPastTheLast", "service: 9110", "service: 65535}\n    replicas: 2\n    limits: {",
                    "from 0 to 65534"},
        BadTopology{"PortOfAllAddresses", "service: 9110", "service: 9101}\n    host: 0.0.0.0\n    limits: {",
                    "0.0.0.0:9101 is used by prefill-1 and by decode-0"},
        BadTopology{"ReachableRouterWithoutASecret", "127.0.0.1:9000", "0.0.0.0:9000",
                    "router: 0.0.0.0:9000 can be reached from other machines: whoever does could join the cluster; set "
                    "cluster.secret_file or tls"},
        BadTopology{"ReachableWorkersWithoutASecret", "service: 9110",
                    "service: 9110}\n    host: node-7\n    limits: {",
                    "host: node-7 can be reached from other machines"},
        BadTopology{"NoMemory", "64 MiB", "0 B", "kv_memory: must be over 0 B"},
        BadTopology{"KeyTwice", "replicas: 2", "replicas: 2\n    replicas: 3", "stands here twice"},
        BadTopology{"ListForText", "served_name: m", "served_name: [m]", "served_name: expected a text"},
        BadTopology{"BrokenYaml", "[shm]", "[shm", "not YAML"},
        BadTopology{"BatchLargerThanStep", "replicas: 2", "limits: {max_step_tokens: 0}",
                    "max_step_tokens: expected a number from 1"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TopologyTest, ReportsAllErrorsAtOnceInOrderOfLines) {
  std::string text = absl::StrReplaceAll(kGood, {{"64 MiB", "64"}, {"[shm]", "[rdma]"}});
  absl::Status status = Topology::Parse(text, "t.yaml").status();
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("t.yaml:10"), HasSubstr("t.yaml:16")));
  EXPECT_LT(status.message().find("t.yaml:10"), status.message().find("t.yaml:16"));
}

TEST(TopologyTest, SurvivesHostileYaml) {
  EXPECT_FALSE(Topology::Parse(std::string(100000, '['), "t.yaml").ok());
  EXPECT_FALSE(Topology::Parse(std::string(100000, '{'), "t.yaml").ok());
  std::string deep;
  for (int i = 0; i < 5000; ++i) deep += std::string(i, ' ') + "a:\n";
  EXPECT_FALSE(Topology::Parse(deep, "t.yaml").ok());
  EXPECT_FALSE(Topology::Parse("", "t.yaml").ok());
  EXPECT_FALSE(Topology::Parse("- a\n- b", "t.yaml").ok());
  EXPECT_FALSE(Topology::Parse("pools: {a: 1}", "t.yaml").ok());
  EXPECT_FALSE(Topology::Parse(std::string("a\0b: 1", 6), "t.yaml").ok());
}

}  // namespace
}  // namespace tandem
