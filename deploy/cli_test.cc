// The tandem command as a user types it, without a cluster.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/topology.h"
#include "deploy/run_program.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

ProgramResult Tandem(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), TANDEM_BINARY_DIR "/bin/tandem");
  absl::StatusOr<ProgramResult> result = RunProgram(arguments, absl::Minutes(1));
  EXPECT_THAT(result, IsOk());
  return result.ok() ? *result : ProgramResult{.exit_code = -1};
}

MATCHER_P2(Ends, code, text, "") {
  const std::string all = arg.output + arg.errors;
  *result_listener << "code " << arg.exit_code << ", output: " << all;
  return arg.exit_code == code && all.find(text) != std::string::npos;
}

TEST(CliTest, WrongUsageNamesTheCommandAndWhatItTakes) {
  EXPECT_THAT(Tandem({}), Ends(2, "tandem check FILE"));
  EXPECT_THAT(Tandem({"chek", "file"}), Ends(2, "there is no command chek"));
  EXPECT_THAT(Tandem({"up"}), Ends(2, "usage: tandem up FILE"));
  for (const std::string& name : {std::string(), std::string(300, 'x')}) {  // What no file can be called.
    EXPECT_THAT(Tandem({"up", name}), Ends(2, name + ": cannot be read"));
    EXPECT_THAT(Tandem({"check", name}), Ends(2, name + ": cannot be read"));
  }
  EXPECT_THAT(Tandem({"status", "extra"}), Ends(2, "usage: tandem status"));
  EXPECT_THAT(Tandem({"generate"}), Ends(2, "generate needs a \"question\""));
  EXPECT_THAT(Tandem({"generate", "--text=a", "b"}), Ends(2, "not both"));
  EXPECT_THAT(Tandem({"generate", "a", "--json_schema=/no/such/file"}),
              Ends(2, "--json_schema=/no/such/file cannot be read"));
  EXPECT_THAT(Tandem({"bench", "b.json"}), Ends(2, "--compare=A.json B.json"));
  EXPECT_THAT(Tandem({"bench", "--arrivals=hourly"}), Ends(2, "--arrivals: expected poisson"));
  EXPECT_THAT(Tandem({"bench", "--arrivals=trace"}), Ends(2, "--trace=FILE and --arrivals=trace go together"));
  EXPECT_THAT(Tandem({"bench", "--prompt_tokens=1:2:3"}), Ends(2, "--prompt_tokens: expected a length or LOW:HIGH"));
  EXPECT_THAT(Tandem({"bench", "--json=/no/such/folder/a.json"}),
              Ends(2, "--json=/no/such/folder/a.json cannot be written"));
  EXPECT_THAT(Tandem({"bench", "--slo=1s"}), Ends(2, "--slo: expected TTFT,TPOT"));
}

TEST(CliTest, HelpAndVersionAreNoErrors) {
  EXPECT_THAT(Tandem({"--help"}), Ends(0, "--max_tokens"));
  EXPECT_THAT(Tandem({"bench", "-h"}), Ends(0, "tandem check FILE"));
  EXPECT_THAT(Tandem({"--version"}), Ends(0, "tandem 0."));
}

TEST(CliTest, ARouterThatIsNotThereIsNamedWithTheCause) {
  const std::string router = "--router=unix:/nonexistent/router";
  for (std::vector<std::string> command : {std::vector<std::string>{"status"},
                                           {"top"},
                                           {"generate", "hi"},
                                           {"drain", "decode-0"},
                                           {"explain", "r"},
                                           {"bench"}}) {
    command.push_back(router);
    EXPECT_THAT(Tandem(command), Ends(1, "no router can be reached at unix:/nonexistent/router: "));
  }
}

TEST(CliTest, AKeyThatNoRouterTakesIsNotSent) {
  setenv("TANDEM_API_KEY", "cl\xC3\xA9-0123456789abcdef", /*overwrite=*/1);
  const ProgramResult result = Tandem({"status", "--router=unix:/nonexistent/router"});
  unsetenv("TANDEM_API_KEY");
  EXPECT_THAT(result, Ends(2, "TANDEM_API_KEY is not printable ASCII"));
}

TEST(CliTest, EveryTopologyOfOursPassesItsCheck) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TANDEM_SOURCE_DIR "/deploy/topologies")) {
    ++count;
    absl::StatusOr<Topology> topology = Topology::Load(entry.path());
    ASSERT_TRUE(topology.ok()) << topology.status();
    // Those for GPUs name a model that is not here, and what this build may lack.
    if (topology->pools[0].device != "cpu") continue;
    EXPECT_THAT(Tandem({"check", entry.path()}), Ends(0, "memory in all: ")) << entry.path();
  }
  EXPECT_GT(count, 0);
}

class CheckedFileTest : public testing::Test {
 protected:
  CheckedFileTest() {
    std::string pattern = std::filesystem::temp_directory_path() / "tandem-cli-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~CheckedFileTest() override { std::filesystem::remove_all(folder_); }

  // Checks a topology of one aggregated worker with these settings.
  ProgramResult CheckPool(const std::string& model, const std::string& settings) {
    const std::string file = folder_ / "t.yaml";
    std::ofstream(file) << "model:\n  path: " << model << "\n  served_name: m\nrouter: {listen: 'unix:/r'}\npools:\n"
                        << "  - {name: decode, role: decode, " << settings << "}\n";
    return Tandem({"check", file});
  }
  ProgramResult Check(const std::string& model, const std::string& kv_memory) {
    return CheckPool(model, "kv_memory: " + kv_memory);
  }
  std::filesystem::path folder_;
};

constexpr char kModel[] = TANDEM_SOURCE_DIR "/build/models/SmolLM2-135M-Instruct.Q4_1.gguf";

TEST_F(CheckedFileTest, AModelThatCannotBeServedIsRefusedWithItsLine) {
  EXPECT_THAT(Check(kModel, "1 MiB"), Ends(0, "decode-0"));
  std::ofstream(folder_ / "junk.gguf") << "no model";
  EXPECT_THAT(Check("junk.gguf", "1 MiB"), Ends(2, "t.yaml:2: model.path: "));
  EXPECT_THAT(Check("missing.gguf", "1 MiB"), Ends(2, "missing.gguf: No such file"));
  EXPECT_THAT(Check(std::string(300, 'm'), "1 MiB"), Ends(2, "mmm: File name too long"));
}

TEST_F(CheckedFileTest, SecretsThatCannotBeReadAreTheLinesError) {
  EXPECT_THAT(CheckPool(kModel, "kv_memory: 1 MiB}\ncluster: {secret_file: no_such_file"),
              Ends(2, "t.yaml:7: cluster.secret_file: " + (folder_ / "no_such_file").string() + ": No such file"));
  EXPECT_THAT(CheckPool(kModel, "kv_memory: 1 MiB}\ncluster: {secret_env: TANDEM_NO_SUCH_VARIABLE"),
              Ends(2, "t.yaml:7: cluster.secret_env: the environment has no variable TANDEM_NO_SUCH_VARIABLE"));
}

TEST_F(CheckedFileTest, SettingsArePrintedWithoutTheirSecrets) {
  const std::string secret = "0123456789abcdef-secret";
  std::ofstream(folder_ / "secret") << secret;
  setenv("TANDEM_TEST_KEY", secret.c_str(), /*overwrite=*/1);
  std::ofstream(folder_ / "t.yaml") << "model: {path: " << kModel << R"(, served_name: m}
router: {api_keys: [{name: ann, key_env: TANDEM_TEST_KEY}]}
pools:
  - {name: decode, role: decode, kv_memory: 1 MiB}
cluster: {secret_file: secret}
)";
  for (const char* flag : {"--print-config", "--print_config"}) {
    const ProgramResult result = Tandem({"check", folder_ / "t.yaml", flag});
    EXPECT_THAT(result, Ends(0, "    - name: ann\n      key_env: TANDEM_TEST_KEY\n"));
    EXPECT_THAT(result.output, AllOf(HasSubstr("secret_file: " + (folder_ / "secret").string()),
                                     HasSubstr("max_waiting_requests: 256"), Not(HasSubstr(secret))));
    EXPECT_THAT(result.errors, Not(HasSubstr(secret)));
    ASSERT_OK_AND_ASSIGN(const Topology topology, Topology::Parse(result.output, "/t.yaml"));
    EXPECT_EQ(topology.pools[0].kv_memory_bytes, 1 << 20);
  }
  unsetenv("TANDEM_TEST_KEY");
}

TEST_F(CheckedFileTest, KvMemoryUnderAPageIsRefusedWithItsLineAndThePageSize) {
  const ProgramResult result = Check(kModel, "64 B");
  EXPECT_THAT(result, Ends(2, "t.yaml:6: pool decode: KV memory of 64 B holds no page"));
  EXPECT_THAT(result.errors, HasSubstr("one of 16 tokens takes"));
}

// A build with the code for GPUs needs none to check; one without says what to build.
TEST_F(CheckedFileTest, AGpuIsShownOrTheBuildThatKnowsOneIsNamed) {
  const ProgramResult result = CheckPool(kModel, "device: cuda");
  if (result.exit_code == 0) {
    EXPECT_THAT(result.output, testing::AllOf(HasSubstr("gpu 0"), HasSubstr("what's free")));
  } else {
    EXPECT_THAT(result,
                Ends(2, "t.yaml:6: pool decode: device cuda: this build has no code for GPUs; build the preset"));
  }
}

}  // namespace
}  // namespace tandem
