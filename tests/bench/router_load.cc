// Load for the router over gRPC: closed loop of streams, and the router's CPU per request and token
// from /proc.
//   router_load ROUTER ROUTER_PID STREAMS CONNECTIONS REQUESTS TOKENS      prompt: 1 KB as token
//   ids

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/router_client.h"
#include "common/clock.h"

namespace tandem {
namespace {

// User and system time of a process.
absl::Duration CpuTime(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string field;
  int64_t ticks = 0;
  for (int i = 1; file >> field && i <= 15; ++i) {
    if (i == 14 || i == 15) ticks += atoll(field.c_str());
  }
  return absl::Seconds(static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

int Run(const std::string& router, const std::string& pid, int streams, int connections, int requests, int tokens) {
  GenerateOptions options;
  options.tokens = std::vector<TokenId>(230, 504);  // About 1 KB of English text.
  options.sampling.max_tokens = tokens;
  options.sampling.ignore_eos = true;
  std::atomic<int> left = requests;
  std::atomic<int64_t> got = 0;
  std::atomic<int> failures = 0;
  const absl::Duration cpu = CpuTime(pid);
  const absl::Time begin = Clock::Real().Now();
  std::vector<std::unique_ptr<RouterClient>> clients;
  for (int i = 0; i < connections; ++i) clients.push_back(std::make_unique<RouterClient>(router));
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] {
      RouterClient& client = *clients[i % connections];
      while (left-- > 0) {
        int64_t mine = 0;
        auto summary = client.Generate(options, [&](const GeneratedPiece& piece) {
          mine += static_cast<int64_t>(piece.tokens.size());
          return true;
        });
        got += mine;
        if (!summary.ok() || mine != tokens) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double used_us = absl::ToDoubleMicroseconds(CpuTime(pid) - cpu);
  const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - begin);
  printf(
      "%d requests of %d tokens, %d streams on %d connections: %.1f us CPU a request, %.2f us a "
      "token, %.0f requests/s, %.0f tokens/s, %d failed\n",
      requests, tokens, streams, connections, used_us / requests, used_us / static_cast<double>(got.load()),
      requests / seconds, static_cast<double>(got.load()) / seconds, failures.load());
  return failures == 0 && got == int64_t{requests} * tokens ? 0 : 1;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  if (argc != 7) {
    fprintf(stderr, "usage: router_load ROUTER ROUTER_PID STREAMS CONNECTIONS REQUESTS TOKENS\n");
    return 2;
  }
  return tandem::Run(argv[1], argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
}
