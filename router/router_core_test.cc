#include "router/router_core.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/error_reason.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_outside.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr Incarnation kDecode(11), kDecode2(12);

// Remembers what a call was told. Touched on the owner thread, read after RouterCoreTest::Settle.
class FakeSink final : public ResponseSink {
 public:
  void Write(SampleUpdate update) override { text += update.text; }
  void Finish(const absl::Status& status, const RequestUsage&) override { ends.push_back(status); }
  std::string text;
  std::vector<absl::Status> ends;
};

// A router of aggregated workers, so that each sample has one leg.
class RouterCoreTest : public testing::Test {
 protected:
  RouterCoreTest()
      : tokenizer_(Letters()),
        core_({.max_retries = 3, .split = false, .access_log = true, .model_fingerprint = 1, .exports_spans = true},
              *tokenizer_, metrics_, outside_, clock_) {
    core_.Start();
  }
  ~RouterCoreTest() override { core_.Stop(); }

  // All that was posted before has run, and its commands were sent.
  void Settle() {
    for (int i = 0; i < 2; ++i) {
      absl::MutexLock lock(&mu_);
      settled_ = false;
      core_.Run([this] {
        absl::MutexLock turn(&mu_);
        settled_ = true;
      });
      mu_.Await(absl::Condition(&settled_));
    }
  }
  void Heartbeat(Incarnation worker, const std::string& state, int64_t sequence) {
    WorkerHeartbeat heartbeat;
    heartbeat.state = state;
    heartbeat.free_pages = 100;
    heartbeat.sequence = sequence;
    core_.OnHeartbeat(worker, heartbeat);
    Settle();
  }
  void Register(Incarnation worker) {
    core_.OnRegister(LettersWorker("decode-" + std::to_string(worker.value()), worker),
                     [](const absl::Status& status) { EXPECT_THAT(status, IsOk()); });
    core_.OnWorkerSession(worker, true);
    Heartbeat(worker, "ready", 1);
  }
  std::shared_ptr<Request> Submit(int samples, const TraceContext& trace = {}) {
    auto request = std::make_shared<Request>();
    request->name = "r";
    request->prompt = {0, 1, 2};
    request->num_samples = samples;
    request->arrival = clock_.Now();
    request->trace = trace;
    sink_ = std::make_shared<FakeSink>();
    request->sink = sink_;
    core_.Submit(request);
    Settle();
    return request;
  }
  static LegEvent Token(RequestId leg, TokenId token) {
    LegEvent event{.id = leg};
    event.tokens.push_back({.token = token});
    return event;
  }

  FakeClock clock_;
  MetricsServer metrics_server_;
  RouterMetrics metrics_{metrics_server_, "letters"};
  std::unique_ptr<Tokenizer> tokenizer_;
  FakeOutside outside_;
  std::shared_ptr<FakeSink> sink_;
  absl::Mutex mu_;
  bool settled_ = false;
  RouterCore core_;
};

TEST_F(RouterCoreTest, AWorkerOfWhichAHeartbeatIsMissingIsAskedForAllThatItHasCached) {
  Register(kDecode);
  outside_.directives.clear();
  Heartbeat(kDecode, "ready", 2);
  EXPECT_THAT(outside_.directives, testing::IsEmpty());
  Heartbeat(kDecode, "ready", 4);
  ASSERT_EQ(outside_.directives.size(), 1);
  EXPECT_EQ(outside_.directives[0].first, kDecode);
  EXPECT_TRUE(outside_.directives[0].second.tell_all);
  Heartbeat(kDecode, "ready", 1);  // It tells all.
  Heartbeat(kDecode, "ready", 2);
  EXPECT_EQ(outside_.directives.size(), 1);
}

TEST_F(RouterCoreTest, WhatWaitsForWorkersIsPlacedInTheOrderInWhichItIsDue) {
  const auto submit = [&](const std::string& name, int priority, absl::Duration ttft_limit) {
    auto request = std::make_shared<Request>();
    request->name = name;
    request->prompt = {0, 1, 2};
    request->priority = priority;
    request->ttft_limit = ttft_limit;
    request->arrival = clock_.Now();
    request->sink = std::make_shared<FakeSink>();
    core_.Submit(request);
  };
  submit("patient", 0, absl::InfiniteDuration());
  submit("within 9 s", 0, absl::Seconds(9));
  submit("within 8 s", 0, absl::Seconds(8));
  submit("important", 1, absl::InfiniteDuration());
  Register(kDecode);
  std::vector<std::string> names;
  for (const auto& [worker, start] : outside_.starts) names.push_back(start.name);
  EXPECT_THAT(names, ElementsAre("important", "within 8 s", "within 9 s", "patient"));
}

TEST_F(RouterCoreTest, CancelOfACallOfSeveralSamplesEndsItOnce) {
  Register(kDecode);
  std::shared_ptr<Request> request = Submit(/*samples=*/4);
  EXPECT_THAT(outside_.starts, SizeIs(4));
  core_.CancelCall(request);
  Settle();
  EXPECT_THAT(sink_->ends, ElementsAre(StatusIs(absl::StatusCode::kCancelled)));
  EXPECT_THAT(outside_.cancels, SizeIs(4));
}

TEST_F(RouterCoreTest, OneFailedSampleEndsTheOthers) {
  Register(kDecode);
  Submit(/*samples=*/3);
  core_.OnWorkerEvents(kDecode, {{{.id = outside_.starts[1].second.id, .error = absl::InvalidArgumentError("bad")}}});
  Settle();
  EXPECT_THAT(sink_->ends, ElementsAre(StatusIs(absl::StatusCode::kInvalidArgument)));
  EXPECT_THAT(outside_.cancels, SizeIs(2));
}

TEST_F(RouterCoreTest, StopFailsRunningCallsOfSeveralSamples) {
  Register(kDecode);
  Submit(/*samples=*/3);
  core_.Stop();
  EXPECT_THAT(sink_->ends, ElementsAre(StatusIs(absl::StatusCode::kUnavailable)));
}

TEST_F(RouterCoreTest, TokensOfALostWorkerThatComeLateAreNobodys) {
  Register(kDecode);
  Submit(/*samples=*/1);
  const RequestId old_leg = outside_.starts[0].second.id;
  core_.OnWorkerEvents(kDecode, {{Token(old_leg, 3)}});
  Register(kDecode2);
  core_.OnWorkerGone(kDecode, "killed");
  core_.OnWorkerEvents(kDecode, {{Token(old_leg, 4)}});
  Settle();
  ASSERT_THAT(outside_.starts, SizeIs(2));
  EXPECT_THAT(outside_.starts[1].second.tokens, ElementsAre(0, 1, 2, 3));
  core_.OnWorkerEvents(kDecode2, {{Token(outside_.starts[1].second.id, 4)}});
  Settle();
  EXPECT_EQ(sink_->text, "de");
}

TEST_F(RouterCoreTest, ADrainedWorkerThatLeavesIsNotLost) {
  Register(kDecode);
  Register(kDecode2);
  Heartbeat(kDecode, "draining", 2);
  core_.OnWorkerGone(kDecode, "its stream ended");
  core_.OnWorkerGone(kDecode2, "its stream ended");
  Settle();
  const std::string metrics = metrics_server_.Text();
  EXPECT_THAT(metrics, Not(HasSubstr("worker=\"decode-11\"")));
  EXPECT_THAT(metrics, HasSubstr("tandem_workers_lost_total{worker=\"decode-12\"} 1"));
}

TEST_F(RouterCoreTest, AWorkerThatRefusesSinceItDrainsIsNotAskedAgain) {
  Register(kDecode);
  Submit(/*samples=*/1);
  ASSERT_EQ(outside_.starts.size(), 1);
  core_.OnWorkerEvents(
      kDecode,
      {{{.id = outside_.starts[0].second.id,
         .error = MakeError(absl::StatusCode::kUnavailable, ErrorReason::kWorkerDraining, "the worker is draining")}}});
  Settle();
  EXPECT_EQ(outside_.starts.size(), 1);  // It waits, though no heartbeat has told of it yet.
  EXPECT_THAT(sink_->ends, testing::IsEmpty());
  const Incarnation other(77);
  Register(other);
  ASSERT_EQ(outside_.starts.size(), 2);
  EXPECT_EQ(outside_.starts[1].first, other);
}

TEST_F(RouterCoreTest, ADrainingWorkerThatDiesWithWorkIsLost) {
  Register(kDecode);
  Submit(/*samples=*/1);
  Heartbeat(kDecode, "draining", 2);
  core_.OnWorkerGone(kDecode, "its stream ended");
  Settle();
  EXPECT_THAT(metrics_server_.Text(), HasSubstr("tandem_workers_lost_total{worker=\"decode-11\"} 1"));
}

TEST_F(RouterCoreTest, AWorkerThatRegistersAgainLosesItsLegsAndKeepsItsNewStream) {
  Register(kDecode);
  Submit(/*samples=*/1);
  Register(kDecode);
  EXPECT_THAT(outside_.expelled, IsEmpty());
  ASSERT_THAT(outside_.starts, SizeIs(2));
  EXPECT_NE(outside_.starts[0].second.id, outside_.starts[1].second.id);
  EXPECT_THAT(sink_->ends, IsEmpty());
}

TEST_F(RouterCoreTest, CallsThatAreNoRequestsAreCountedToo) {
  core_.CountRefused("r", kAnyone, absl::InvalidArgumentError("temperature: must not be negative"));
  Settle();
  EXPECT_THAT(metrics_server_.Text(), HasSubstr("tandem_requests_total{outcome=\"INVALID_ARGUMENT\"} 1"));
}

TEST_F(RouterCoreTest, ExplainsWhereARequestWentAndWhatItWaitedFor) {
  Submit(/*samples=*/1);
  Register(kDecode);
  std::vector<std::string> decisions;
  core_.Explain("r", [&](const auto& answer) {
    for (const auto& [age, what] : answer) decisions.push_back(what);
  });
  core_.Explain("other", [](const auto& answer) { EXPECT_THAT(answer, IsEmpty()); });
  Settle();
  EXPECT_THAT(decisions, ElementsAre("waits: no decode worker is registered", HasSubstr("decode-11 alone: ")));
}

TEST_F(RouterCoreTest, EachCallThatEndsIsALineOfTheAccessLog) {
  Register(kDecode);
  testing::internal::CaptureStderr();
  core_.CancelCall(Submit(/*samples=*/1));
  Settle();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("request ended request=r outcome=CANCELLED prompt_tokens=3 cached_tokens=0 output_tokens=0"));
}

TEST_F(RouterCoreTest, CallsOfASampledTraceAreExported) {
  Register(kDecode);
  for (const TraceContext& trace : {TraceContext{"aa", "bb", true}, TraceContext{"cc", "dd", false}, TraceContext()}) {
    core_.CancelCall(Submit(/*samples=*/2, trace));
    Settle();
  }
  ASSERT_THAT(outside_.spans, SizeIs(1));  // A share of 0 of the others.
  EXPECT_EQ(outside_.spans[0][0].trace_id, "aa");
  EXPECT_EQ(outside_.spans[0][0].parent_id, "bb");
  EXPECT_THAT(outside_.spans[0][0].error, HasSubstr("CANCELLED"));
  EXPECT_NEAR(absl::ToDoubleSeconds(absl::Now() - outside_.spans[0][0].end), 0, 10);  // By the wall clock.
}

TEST(DecisionLogTest, ForgetsTheOldestRequests) {
  DecisionLog log(/*max_requests=*/2);
  for (const char* request : {"a", "b", "a", "c"}) log.Add(request, absl::UnixEpoch(), request);
  EXPECT_THAT(log.Find("a"), IsEmpty());
  EXPECT_THAT(log.Find("b"), SizeIs(1));
  log.Add("c", absl::UnixEpoch(), "c");  // The same again.
  EXPECT_THAT(log.Find("c"), SizeIs(1));
  for (int i = 0; i < 1000; ++i) log.Add("c", absl::UnixEpoch(), absl::StrCat(i));
  EXPECT_THAT(log.Find("c"), SizeIs(64));
}

TEST(RouterMetricsTest, HandoversOfNoTimeCountAndThoseThatWereNoneDoNot) {
  MetricsServer server;
  RouterMetrics metrics(server, "letters");
  metrics.ObserveEnd({.completion_tokens = 8, .prefill_worker = "p", .decode_worker = "d"}, absl::OkStatus());
  metrics.ObserveEnd({.completion_tokens = 8, .decode_worker = "d"}, absl::OkStatus());
  metrics.ObserveEnd({.completion_tokens = 1, .prefill_worker = "p"}, absl::OkStatus());
  EXPECT_THAT(server.Text(), HasSubstr("tandem_stage_seconds_count{stage=\"handover\"} 1"));
  EXPECT_THAT(server.Text(), HasSubstr("tandem_stage_seconds_count{stage=\"decode\"} 2"));
  EXPECT_THAT(server.Text(), HasSubstr("tandem_stage_seconds_count{stage=\"prefill\"} 3"));
}

TEST(RouterMetricsTest, TellsTheSameUnderTheNamesOfVllm) {
  MetricsServer server;
  RouterMetrics metrics(server, "letters");
  metrics.ObserveUpdate({.tokens = {{}}, .has_first_token = true, .latency = absl::Milliseconds(30)});
  metrics.ObserveUpdate({.tokens = {{}, {}}, .finish = RequestFinish::kStop, .latency = absl::Milliseconds(3)});
  metrics.ObserveEnd({.prompt_tokens = 7,
                      .completion_tokens = 3,
                      .cached_tokens = 4,
                      .stages = {.queue = absl::Milliseconds(250)},
                      .latency = absl::Seconds(1)},
                     absl::OkStatus());
  metrics.ObserveCall({.sampling = {.max_tokens = 60}, .num_samples = 2}, {.longest_sample = 3}, absl::OkStatus());
  metrics.ObserveCall({}, {}, absl::UnavailableError(""));  // Counts as a failure, and in nothing of these.
  ClusterView view;
  WorkerRegistration decode{
      .worker_id = "decode-0", .incarnation = kDecode, .role = Role::kDecode, .total_pages = 100, .page_tokens = 16};
  view.Register(decode, absl::UnixEpoch());
  for (int64_t preemptions : {2, 5, 5}) {
    view.Register(decode, absl::UnixEpoch());  // Lost and there again, with the count of before.
    metrics.SetState(view, /*active=*/5, /*waiting=*/2);
    view.OnHeartbeat(kDecode, {.free_pages = 25, .preemptions = preemptions, .sequence = 1}, absl::UnixEpoch());
    metrics.SetState(view, /*active=*/5, /*waiting=*/2);
  }
  const std::string text = server.Text(), labels = "{engine=\"0\",model_name=\"letters\"}";
  for (const auto& [name, value] : {std::pair{"time_to_first_token_seconds_count", "1"},
                                    {"inter_token_latency_seconds_count", "1"},
                                    {"time_per_output_token_seconds_count", "1"},
                                    {"request_params_n_sum", "2"},
                                    {"request_params_n_count", "1"},
                                    {"request_params_max_tokens_sum", "60"},
                                    {"request_max_num_generation_tokens_sum", "3"},
                                    {"generation_tokens_total", "3"},
                                    {"prompt_tokens_total", "7"},
                                    {"prefix_cache_queries_total", "7"},
                                    {"prefix_cache_hits_total", "4"},
                                    {"e2e_request_latency_seconds_sum", "1"},
                                    {"request_inference_time_seconds_sum", "0.75"},
                                    {"num_preemptions_total", "5"},
                                    {"num_requests_running", "3"},
                                    {"num_requests_waiting", "2"},
                                    {"kv_cache_usage_perc", "0.75"}}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("vllm:", name, labels, " ", value))) << name;
  }
  EXPECT_THAT(text, HasSubstr("vllm:cache_config_info{block_size=\"16\",engine=\"0\",model_name=\"letters\","
                              "num_gpu_blocks=\"100\"} 1"));
  EXPECT_THAT(text, HasSubstr("vllm:request_success_total{engine=\"0\",finished_reason=\"stop\","
                              "model_name=\"letters\"} 1"));
}

}  // namespace
}  // namespace tandem
