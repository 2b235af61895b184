// Which of two prefill and two decode workers a prompt of 40 tokens goes to, one row for each thing that decides.

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "common/page_hash.h"
#include "gtest/gtest.h"
#include "router/placement.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_time.h"

namespace tandem {
namespace {

constexpr int kPageTokens = 4;
// A session that fits the other prefill and the other decode worker best, as their names have it.
constexpr uint64_t kFitsTheOther = 8;

struct PrefillState {
  int64_t queued = 0;
  double rate = 1000;  // Tokens a second.
  bool has_prefix = false;
  bool is_ready = true;
};
struct DecodeState {
  int running = 0, free_pages = 100, waiting = 0;
  absl::Duration step = absl::Milliseconds(10);
  bool has_prefix = false;
  bool is_ready = true;
  std::string domain = "rack";
};
struct Row {
  std::string what;
  PrefillState prefill[2];
  DecodeState decode[2];
  double links[2][2] = {{10, 10}, {10, 10}};  // GB/s, of each prefill worker; 0: not measured; negative: down.
  int conditional_prefill_tokens = 0;
  uint64_t affinity = 0;
  // Of the workers' numbers, from 0; prefill -1: on decode alone; both -1: nothing can be placed.
  int expected_prefill = 0, expected_decode = 0;
};

std::vector<Row> Rows() {
  return {
      {.what = "all are equal"},
      {.what = "a queue at the first", .prefill = {{.queued = 10}, {}}, .expected_prefill = 1},
      {.what = "a queue at the other", .prefill = {{}, {.queued = 10}}},
      {.what = "the other computes faster", .prefill = {{}, {.rate = 1500}}, .expected_prefill = 1},
      {.what = "faster, but with a queue that takes longer", .prefill = {{}, {.queued = 40, .rate = 1500}}},
      {.what = "the other has the prefix", .prefill = {{}, {.has_prefix = true}}, .expected_prefill = 1},
      {.what = "the prefix is worth less than the queue before it",
       .prefill = {{}, {.queued = 60, .has_prefix = true}}},
      {.what = "the first drains", .prefill = {{.is_ready = false}, {}}, .expected_prefill = 1},
      {.what = "fewer run on the other", .decode = {{.running = 8}, {.running = 4}}, .expected_decode = 1},
      {.what = "what waits counts, too", .decode = {{.waiting = 8}, {.running = 4}}, .expected_decode = 1},
      {.what = "the other's steps are shorter", .decode = {{}, {.step = absl::Milliseconds(6)}}, .expected_decode = 1},
      {.what = "shorter steps, but many of them wait", .decode = {{}, {.running = 60, .step = absl::Milliseconds(6)}}},
      {.what = "pages are missing", .decode = {{.free_pages = 2}, {}}, .expected_decode = 1},
      {.what = "pages are missing, but the prefix is there", .decode = {{.free_pages = 2, .has_prefix = true}, {}}},
      {.what = "the first decode worker drains", .decode = {{.is_ready = false}, {}}, .expected_decode = 1},
      {.what = "a link is slow", .links = {{.01, 10}, {10, 10}}, .expected_decode = 1},
      {.what = "a slow link has less to carry where the prefix is",
       .decode = {{.has_prefix = true}, {}},
       .links = {{.01, .01}, {10, 10}}},
      {.what = "all links of the first are slow", .links = {{.01, .01}, {10, 10}}, .expected_prefill = 1},
      {.what = "all links of the first are slow, and the other's queue is longer than that",
       .prefill = {{}, {.queued = 1500}},
       .links = {{.01, .01}, {10, 10}}},
      {.what = "the first has only one slow link, to the idle worker",
       .decode = {{.running = 1}, {}},
       .links = {{10, .01}, {10, 10}},
       .expected_prefill = 0,
       .expected_decode = 0},
      {.what = "a session of the other's", .affinity = kFitsTheOther, .expected_prefill = 1, .expected_decode = 1},
      {.what = "a session stays at a worker whose links are a little slower",
       .links = {{10, 10}, {.18, .18}},
       .affinity = kFitsTheOther,
       .expected_prefill = 1,
       .expected_decode = 1},
      {.what = "a session leaves a worker whose links are much slower",
       .links = {{10, 10}, {.01, .01}},
       .affinity = kFitsTheOther,
       .expected_decode = 1},
      {.what = "a link is down", .links = {{-1, 10}, {10, 10}}, .expected_decode = 1},
      {.what = "all links of the first are down", .links = {{-1, -1}, {10, 10}}, .expected_prefill = 1},
      {.what = "all links are down", .links = {{-1, -1}, {-1, -1}}, .expected_prefill = -1, .expected_decode = -1},
      {.what = "among equals the own domain's", .decode = {{.domain = "far"}, {}}, .expected_decode = 1},
      {.what = "the own domain's is busy", .decode = {{.domain = "far"}, {.running = 20}}},
      {.what = "a short prompt on decode while prefill is busy",
       .prefill = {{.queued = 500}, {.queued = 500}},
       .conditional_prefill_tokens = 64,
       .expected_prefill = -1},
      {.what = "a short prompt, and prefill is idle", .conditional_prefill_tokens = 64},
      {.what = "a prompt that is not short",
       .prefill = {{.queued = 500}, {.queued = 500}},
       .conditional_prefill_tokens = 39},
  };
}

class PlacementTableTest : public testing::TestWithParam<Row> {
 protected:
  void Add(uint64_t id, Role role, const std::string& domain, WorkerHeartbeat heartbeat, bool has_prefix) {
    view_.Register({.worker_id = std::to_string(id),
                    .incarnation = Incarnation(id),
                    .role = role,
                    .domain = domain,
                    .total_pages = 100,
                    .page_tokens = kPageTokens,
                    .max_context_tokens = 1000,
                    .page_bytes = 1 << 20},
                   kNow);
    view_.SetSessionUp(Incarnation(id), true);
    heartbeat.sequence = 1;
    if (has_prefix) heartbeat.stored_hashes = ChainedPageHashes(tokens_, kPageTokens);
    view_.OnHeartbeat(Incarnation(id), heartbeat, kNow);
  }
  static WorkerHeartbeat StateOf(const DecodeState& decode) {
    WorkerHeartbeat heartbeat;
    heartbeat.state = decode.is_ready ? "ready" : "draining";
    heartbeat.running_requests = decode.running;
    heartbeat.waiting_requests = decode.waiting;
    heartbeat.free_pages = decode.free_pages;
    return heartbeat;
  }
  WorkerSpeed& SpeedOf(uint64_t id) { return view_.Find(Incarnation(id))->speed; }

  void Build(const Row& row) {
    for (int i = 0; i < 2; ++i) {
      const DecodeState& decode = row.decode[i];
      Add(11 + i, Role::kDecode, decode.domain, StateOf(decode), decode.has_prefix);
      SpeedOf(11 + i).OnDecodeStep(1, 1, kNow);
      SpeedOf(11 + i).OnDecodeStep(1, 1, kNow + decode.step);
    }
    for (int i = 0; i < 2; ++i) {
      const PrefillState& prefill = row.prefill[i];
      WorkerHeartbeat heartbeat;
      heartbeat.state = prefill.is_ready ? "ready" : "draining";
      heartbeat.free_pages = 100;
      heartbeat.queued_prompt_tokens = prefill.queued;
      for (int j = 0; j < 2; ++j) {
        const double rate = row.links[i][j];
        heartbeat.links.push_back(
            {.peer = Incarnation(11 + j), .up = rate >= 0, .gigabytes_per_second = std::max(rate, 0.0)});
      }
      Add(1 + i, Role::kPrefill, "rack", heartbeat, prefill.has_prefix);
      SpeedOf(1 + i).OnFirstToken(prefill.rate, kNow, kNow + absl::Seconds(1));
    }
  }

  ClusterView view_;
  const std::vector<TokenId> tokens_ = std::vector<TokenId>(40, 7);
};

TEST_P(PlacementTableTest, GoesToTheExpectedPair) {
  const Row& row = GetParam();
  Build(row);
  // Equals go to the first: both draws are it.
  const absl::StatusOr<Placement> placement = Place(
      view_,
      {.tokens = tokens_, .conditional_prefill_tokens = row.conditional_prefill_tokens, .affinity = row.affinity});
  if (row.expected_decode < 0) {
    EXPECT_THAT(placement, StatusIs(absl::StatusCode::kUnavailable));
    return;
  }
  ASSERT_THAT(placement, IsOk());
  EXPECT_EQ(placement->prefill.is_set() ? static_cast<int>(placement->prefill.value()) - 1 : -1, row.expected_prefill)
      << placement->reason;
  EXPECT_EQ(static_cast<int>(placement->decode.value()) - 11, row.expected_decode) << placement->reason;
}

INSTANTIATE_TEST_SUITE_P(Rows, PlacementTableTest, testing::ValuesIn(Rows()), [](const auto& row) {
  std::string name = row.param.what;
  for (char& letter : name) letter = std::isalnum(letter) ? letter : '_';
  return name;
});

}  // namespace
}  // namespace tandem
