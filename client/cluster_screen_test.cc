#include "client/cluster_screen.h"

#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

ClusterSummary Cluster() {
  ClusterSummary cluster{.ready = true, .active_requests = 3};
  cluster.workers.push_back({.worker_id = "prefill-0",
                             .role = "prefill",
                             .state = "ready",
                             .running = 1,
                             .waiting = 2,
                             .free_pages = 75,
                             .total_pages = 100,
                             .queued_prompt_tokens = 5'000,
                             .prefill_tokens_per_second = 1234.6});
  cluster.workers.push_back({.worker_id = "decode-0",
                             .role = "decode",
                             .state = "draining",
                             .running = 10,
                             .free_pages = 0,
                             .total_pages = 100,
                             .seconds_per_token = 0.02});
  cluster.links.push_back({.prefill_worker = "prefill-0",
                           .decode_worker = "decode-0",
                           .transport = "shm",
                           .gigabytes_per_second = 5.25,
                           .latency_us = 12,
                           .up = true});
  cluster.links.push_back({.prefill_worker = "prefill-0", .decode_worker = "decode-1", .error = "no route"});
  return cluster;
}

std::vector<std::string> Lines(const std::string& screen) { return absl::StrSplit(screen, '\n'); }

TEST(ClusterScreenTest, ShowsWorkersAndLinks) {
  const std::vector<std::string> lines = Lines(DrawCluster("r:1", Cluster(), 200, /*colours=*/false));
  EXPECT_EQ(lines[0], "r:1  ready  3 active requests, 11 sequences running, 2 waiting");
  EXPECT_THAT(lines[3], AllOf(HasSubstr("prefill-0"), HasSubstr("5000"), HasSubstr("#####...............  25%"),
                              HasSubstr("1235 prompt tokens/s")));
  EXPECT_THAT(lines[4], AllOf(HasSubstr("draining"), HasSubstr("#################### 100%"),
                              HasSubstr("20.0 ms a token, 500 tokens/s")));
  EXPECT_THAT(lines[7], AllOf(HasSubstr("prefill-0 -> decode-0"), HasSubstr("shm"), HasSubstr("5.2")));
  EXPECT_THAT(lines[8], HasSubstr("down: no route"));
}

TEST(ClusterScreenTest, CutsLinesAndColoursWhatIsWrong) {
  const std::string screen = DrawCluster("r:1", Cluster(), 40, /*colours=*/true);
  for (std::string line : Lines(screen)) EXPECT_LE(line.size(), 40 + 9) << line;  // Escapes take no place.
  EXPECT_THAT(screen, AllOf(HasSubstr("\x1b[31mdecode-0"), HasSubstr("\x1b[32mprefill-0")));
  EXPECT_THAT(DrawCluster("r:1", Cluster(), 40, false), Not(HasSubstr("\x1b")));
}

TEST(ClusterScreenTest, AnEmptyClusterIsAScreenToo) {
  EXPECT_THAT(DrawCluster("r:1", {}, 80, false), AllOf(HasSubstr("NOT READY"), Not(HasSubstr("link"))));
}

}  // namespace
}  // namespace tandem
