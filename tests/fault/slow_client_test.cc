// Clients of gRPC that do not read what they asked for.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "common/clock.h"
#include "gtest/gtest.h"
#include "tandem/v1/router.grpc.pb.h"
#include "tests/support/process_cluster.h"

namespace tandem {
namespace {

// Each token with twenty alternatives, so that an answer is more than a connection's window.
v1::GenerateRequest LongAnswers(int samples, int tokens) {
  v1::GenerateRequest request;
  request.set_text("The first lighthouse stood");
  request.set_n(samples);
  request.mutable_sampling()->set_max_tokens(tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_logprobs(20);
  return request;
}

std::shared_ptr<grpc::Channel> SmallWindow(const std::string& router) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  return grpc::CreateCustomChannel(router, grpc::InsecureChannelCredentials(), arguments);
}

void ExpectDropped(int samples, int tokens, const std::string& why) {
  ProcessCluster cluster({.prefill_replicas = 0, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const auto stub = v1::Router::NewStub(SmallWindow(cluster.router()));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, LongAnswers(samples, tokens));
  const absl::Time begin = Clock::Real().Now();
  bool dropped = false;  // After half a minute, behind what the answer takes.
  while (!dropped && Clock::Real().Now() - begin < absl::Minutes(2)) dropped = cluster.AwaitOutput(why);
  EXPECT_TRUE(dropped) << cluster.Output();
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(cluster.AwaitActive(0));
  EXPECT_TRUE(cluster.AwaitAllPagesFree());
  EXPECT_TRUE(cluster.Ask({.text = "Water boils at", .sampling = {.max_tokens = 4}}).summary.ok());
}

// A window of 64 KiB in 16 s or so: what is behind that waits, for longer than a client is kept that takes nothing.
// Four samples in turn, so that what waits does not become one message.
TEST(SlowClientTest, OneThatReadsSlowlyButSteadilyGetsItsWholeAnswer) {
  constexpr int kSamples = 4, kTokens = 60;
  ProcessCluster cluster({.prefill_replicas = 0, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  const auto stub = v1::Router::NewStub(SmallWindow(cluster.router()));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, LongAnswers(kSamples, kTokens));
  v1::GenerateResponse response;
  int tokens = 0;
  const absl::Time begin = Clock::Real().Now();
  for (absl::Time next = begin; reader->Read(&response); next += absl::Milliseconds(200)) {
    tokens += response.tokens_size();
    while (Clock::Real().Now() < next) std::this_thread::yield();
  }
  EXPECT_GT(Clock::Real().Now() - begin, absl::Seconds(31));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, kSamples * kTokens);
}

TEST(SlowClientTest, OneThatTakesNothingIsDroppedAfterHalfAMinute) {
  ExpectDropped(/*samples=*/1, /*tokens=*/600, "why=\"it takes nothing\"");
}

TEST(SlowClientTest, OneThatLeavesTooMuchIsDroppedAtOnce) {
  ExpectDropped(/*samples=*/16, /*tokens=*/400, "why=\"more waits for it than it may\"");
}

}  // namespace
}  // namespace tandem
