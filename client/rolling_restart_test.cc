#include "client/rolling_restart.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A cluster whose workers are away for a second when they are restarted, and linked a second after that.
class FakeCluster final : public RollingRestartActions {
 public:
  FakeCluster() {
    for (const char* name : {"decode-0", "decode-10", "decode-2"}) Add(name, "decode");
    Add("prefill-0", "prefill");
  }
  absl::StatusOr<ClusterSummary> Status() override {
    if (clock.Now() < silent_until) return absl::UnavailableError("no router");
    ClusterSummary now = cluster;
    std::erase_if(now.workers, [&](const WorkerSummary& worker) { return IsAway(worker.worker_id, away_for); });
    for (LinkSummary& link : now.links) link.up = !IsAway(link.decode_worker, away_for + absl::Seconds(1));
    return now;
  }
  absl::Status Restart(const std::string& worker) override {
    if (on_restart) on_restart();
    restarted.push_back(worker);
    restart_at = clock.Now();
    for (WorkerSummary& one : cluster.workers) {
      if (one.worker_id == worker) one.incarnation = Incarnation(one.incarnation.value() + 1);
    }
    return absl::OkStatus();
  }
  void Sleep(absl::Duration duration) override { clock.Advance(duration); }
  void Tell(const std::string& line) override { absl::StrAppend(&told, line, "\n"); }

  FakeClock clock;
  ClusterSummary cluster;
  std::vector<std::string> restarted;
  std::string told;
  std::function<void()> on_restart;
  absl::Duration away_for = absl::Seconds(1);
  absl::Time silent_until = absl::InfinitePast();

 private:
  void Add(const std::string& name, const std::string& role) {
    cluster.workers.push_back({.worker_id = name, .role = role, .state = "ready", .incarnation = Incarnation(1)});
    if (role == "decode") cluster.links.push_back({.prefill_worker = "prefill-0", .decode_worker = name, .up = true});
  }
  bool IsAway(const std::string& worker, absl::Duration time) const {
    return !restarted.empty() && restarted.back() == worker && clock.Now() < restart_at + time;
  }

  absl::Time restart_at;
};

TEST(RollingRestartTest, GoesOnWithTheNextWorkerWhenTheLastOneIsReadyAndLinked) {
  FakeCluster cluster;
  const absl::Time begin = cluster.clock.Now();
  EXPECT_THAT(RestartPool("decode", absl::Minutes(1), cluster.clock, cluster), IsOk());
  EXPECT_THAT(cluster.restarted, ElementsAre("decode-0", "decode-2", "decode-10"));
  EXPECT_EQ(cluster.clock.Now() - begin, absl::Seconds(6));
  EXPECT_THAT(cluster.told, AllOf(HasSubstr("decode-0 finishes"), HasSubstr("decode-10 is back after 2s")));
}

TEST(RollingRestartTest, ARouterThatIsSilentForAWhileIsWaitedFor) {
  FakeCluster cluster;
  cluster.on_restart = [&] { cluster.silent_until = cluster.clock.Now() + absl::Seconds(5); };
  const absl::Time begin = cluster.clock.Now();
  EXPECT_THAT(RestartPool("prefill", absl::Minutes(1), cluster.clock, cluster), IsOk());
  EXPECT_EQ(cluster.clock.Now() - begin, absl::Seconds(5));
  EXPECT_THAT(cluster.told, HasSubstr("no other prefill worker: requests that wait"));
}

TEST(RollingRestartTest, AWorkerThatRestartedByItselfMeanwhileIsStillWaitedFor) {
  FakeCluster cluster;
  // The next one is killed, and comes back as another incarnation.
  cluster.on_restart = [&] {
    if (cluster.restarted.empty()) cluster.cluster.workers[2].incarnation = Incarnation(77);
  };
  const absl::Time begin = cluster.clock.Now();
  EXPECT_THAT(RestartPool("decode", absl::Minutes(1), cluster.clock, cluster), IsOk());
  EXPECT_EQ(cluster.clock.Now() - begin, absl::Seconds(6));
}

TEST(RollingRestartTest, StopsAtAWorkerThatDoesNotComeBackAndNamesTheRest) {
  FakeCluster cluster;
  cluster.away_for = absl::Hours(1);
  EXPECT_THAT(RestartPool("decode", absl::Seconds(30), cluster.clock, cluster),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       AllOf(HasSubstr("decode-0 is not back"), HasSubstr("not restarted: decode-2, decode-10"))));
  EXPECT_THAT(cluster.restarted, ElementsAre("decode-0"));
}

TEST(RollingRestartTest, BeginsNothingWhereAWorkerIsNotReadyOrThePoolIsUnknown) {
  FakeCluster cluster;
  cluster.cluster.workers[1].state = "degraded";
  EXPECT_THAT(RestartPool("decode", absl::Seconds(30), cluster.clock, cluster),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("decode-10 is degraded")));
  EXPECT_THAT(RestartPool("other", absl::Seconds(30), cluster.clock, cluster),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("pools that have some: decode, prefill")));
  EXPECT_THAT(cluster.restarted, IsEmpty());
}

}  // namespace
}  // namespace tandem
