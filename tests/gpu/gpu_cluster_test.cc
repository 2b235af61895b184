// A cluster of a prefill and a decode worker on one GPU, which fails under one of them: the worker ends and says why,
// the launcher starts it anew, and no request is lost.

#include <string>
#include <vector>

#include "engine/cuda/cuda_ops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/process_cluster.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

struct Fault {
  const char* name;
  const char* process;
  const char* fault;    // As TANDEM_GPU_FAULT has it.
  const char* message;  // What the process says.
};

class GpuClusterTest : public testing::TestWithParam<Fault> {};

GenerateOptions PromptNumber(int number) {
  GenerateOptions options;
  options.tokens.emplace();
  for (int i = 0; i < 40; ++i) options.tokens->push_back(2 + (i * 31 + number * 17) % 300);
  options.sampling.max_tokens = 24;
  options.sampling.ignore_eos = true;
  return options;
}

TEST_P(GpuClusterTest, AFailureOfTheGpuLosesNoRequest) {
  if (!FreeDeviceBytes(0).ok()) GTEST_SKIP() << "no GPU can be used here";
  ProcessCluster::Options options;
  options.on_gpu = true;
  options.prefill_replicas = options.decode_replicas = 1;
  options.transports = "nvlink";
  options.limits = "{max_step_tokens: 256, max_running_requests: 16}";
  options.router_extra = "  max_retries: 20\n  placement_timeout: 60s\n";
  options.gpu_faults = [](const std::string& process) {
    return process == GetParam().process ? std::string(GetParam().fault) : "";
  };
  ProcessCluster cluster(options);
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  constexpr int kPrompts = 3, kRequests = 30;
  std::vector<std::vector<TokenId>> reference(kPrompts);
  int retries = 0;
  for (int i = 0; i < kRequests; ++i) {
    const ProcessCluster::Answer answer = cluster.Ask(PromptNumber(i % kPrompts));
    ASSERT_THAT(answer.summary, IsOk()) << "request " << i << "\n" << cluster.Output();
    ASSERT_EQ(answer.tokens.size(), 24);
    retries += answer.summary->retries;
    // Computed anew in one chunk, a token may differ where two are about as good.
    if (answer.summary->retries > 0) continue;
    std::vector<TokenId>& wanted = reference[i % kPrompts];
    if (wanted.empty()) wanted = answer.tokens;
    EXPECT_EQ(answer.tokens, wanted) << "request " << i;
  }
  EXPECT_GT(retries, 0);
  EXPECT_TRUE(cluster.AwaitRestarts(GetParam().process, 1));
  EXPECT_TRUE(cluster.AwaitReady());
  EXPECT_TRUE(cluster.AwaitOutput(GetParam().message)) << cluster.Output();
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
}

// Steps before the workers serve: nine prompts of growing length. Prefill has a step for each request, decode 23.
INSTANTIATE_TEST_SUITE_P(
    Faults, GpuClusterTest,
    testing::Values(Fault{"DecodeWritesNowhere", "decode-0", "illegal_access@60", "an illegal memory access"},
                    Fault{"PrefillWritesNowhere", "prefill-0", "illegal_access@14", "an illegal memory access"},
                    Fault{"DecodeOutOfMemory", "decode-0", "out_of_memory@60", "out of memory"},
                    Fault{"DecodeHangs", "decode-0", "hang@60", "a step on the GPU does not end"},
                    Fault{"PrefillHangs", "prefill-0", "hang@14", "a step on the GPU does not end"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tandem
