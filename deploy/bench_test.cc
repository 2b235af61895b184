// tandem bench as a user types it, on a cluster of real processes.

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "deploy/run_program.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(BenchTest, MeasuresAClusterAndComparesTwoReports) {
  ProcessCluster::Options options;
  options.prefill_replicas = options.decode_replicas = 1;
  ProcessCluster cluster(options);
  ASSERT_TRUE(cluster.AwaitReady());
  const std::string folder = testing::TempDir() + "tandem-bench-test/";
  std::filesystem::create_directories(folder);
  auto bench = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {TANDEM_BINARY_DIR "/bin/tandem", "bench", "--router=" + cluster.router()});
    absl::StatusOr<ProgramResult> result = RunProgram(arguments, absl::Minutes(1));
    EXPECT_THAT(result, IsOk());
    return result.ok() ? *result : ProgramResult{.exit_code = -1};
  };
  for (const char* load : {"--arrivals=poisson", "--arrivals=closed"}) {
    const std::string json = folder + (load + 11) + ".json";
    const ProgramResult result = bench({load, "--rate=10", "--concurrency=2", "--requests=6", "--warm_up=2",
                                        "--prompt_tokens=8:40", "--output_tokens=5", "--slo=1h,1h", "--json=" + json});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_THAT(result.output, AllOf(HasSubstr("6 requests in "), HasSubstr("0 failed"), HasSubstr("ttft"),
                                     HasSubstr("(TTFT 1h, TPOT 1h)")));
    EXPECT_THAT(ReadFile(json), AllOf(HasSubstr("prefill-0 (prefill, "), HasSubstr("prefill-0 -> decode-0: shm"),
                                      HasSubstr("\"itl_ms\":{\"count\":24,")));
  }
  const ProgramResult compared =
      bench({"--compare=" + folder + "poisson.json", folder + "closed.json", "--svg=" + folder + "ratios.svg"});
  EXPECT_EQ(compared.exit_code, 0) << compared.errors;
  EXPECT_THAT(compared.output, HasSubstr("throughput output_tokens_per_second"));
  EXPECT_THAT(ReadFile(folder + "ratios.svg"), HasSubstr("</svg>"));
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

}  // namespace
}  // namespace tandem
