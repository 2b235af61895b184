// KV pages between the GPU pools of two processes, in the ways of kvtransfer: rates, patterns, latencies, and what
// moving costs a GPU that computes.
//   kvbench [PART ...]   all but ucx, hidden and sets of your own by default; each prints a line of JSON a figure,
//   which
//                        tests/bench/kvbench/plot.py draws
//     setup rates patterns checksums latency beside_gemm
//     ucx                through UCX (UCX_TLS, UCX_MODULE_DIR)
//     hidden             alone: the peer process sees its own GPU only
//     BYTESxPAGES        rates and patterns of so many pages of that size
//
// Rates are shares of the copy engine's for one message of 512 MiB, measured in the same run. Every set's bytes are
// verified at the peer. With one GPU, or two that do not reach each other, the peer's pool is on the same one.

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "tests/bench/kvbench/rig.h"

namespace tandem {
namespace {

constexpr char kUsage[] =
    "usage: kvbench [setup|rates|patterns|checksums|latency|beside_gemm|ucx|BYTESxPAGES ...], or kvbench hidden\n";

// "4096x10000"; false when it is none that fits the pools.
bool ParseSet(const std::string& text, NamedSet* named) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('x', 1));
  named->name = text;
  named->set.seed = 21;
  return absl::SimpleAtoi(parts.first, &named->set.page_bytes) && absl::SimpleAtoi(parts.second, &named->set.pages) &&
         named->set.page_bytes > 0 && named->set.page_bytes % 16 == 0 && named->set.pages > 0 &&
         named->set.pages <= static_cast<int64_t>(kPoolBytes) / named->set.page_bytes;
}

int Run(std::vector<std::string> parts) {
  if (parts.empty()) parts = {"setup", "rates", "patterns", "checksums", "latency", "beside_gemm"};
  const bool hidden = parts == std::vector<std::string>{"hidden"};
  const std::vector<std::pair<std::string, void (*)(Rig&)>> known = {
      {"setup", RunSetup},
      {"rates", [](Rig& rig) { RunRates(rig, kSets); }},
      {"patterns", [](Rig& rig) { RunPatterns(rig, kSets[0]); }},
      {"checksums", RunChecksums},
      {"latency", RunLatencies},
      {"beside_gemm", RunBesideGemm},
      {"ucx", RunUcx}};
  auto find = [&](const std::string& part) {
    void (*run)(Rig&) = hidden ? RunHidden : nullptr;
    for (const auto& [name, function] : known) {
      if (name == part) run = function;
    }
    return run;
  };
  NamedSet own;
  for (const std::string& part : parts) {
    if (find(part) != nullptr || ParseSet(part, &own)) continue;
    fputs(kUsage, stderr);
    return 2;
  }
  Rig rig(hidden);
  for (const std::string& part : parts) {
    if (auto* run = find(part); run != nullptr) {
      run(rig);
    } else if (ParseSet(part, &own)) {
      RunRates(rig, {own});
      RunPatterns(rig, own);
    }
  }
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) { return tandem::Run({argv + 1, argv + argc}); }
