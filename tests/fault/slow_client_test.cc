// Clients of gRPC that do not read what they asked for.

#include <grpcpp/grpcpp.h>

#include <string>

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

void ExpectDropped(int samples, int tokens, const std::string& why) {
  ProcessCluster cluster({.prefill_replicas = 0, .decode_replicas = 1});
  ASSERT_TRUE(cluster.AwaitReady()) << cluster.Output();
  grpc::ChannelArguments small_window;
  small_window.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  small_window.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  const auto stub = v1::Router::NewStub(
      grpc::CreateCustomChannel(cluster.router(), grpc::InsecureChannelCredentials(), small_window));
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

TEST(SlowClientTest, OneThatTakesNothingIsDroppedAfterHalfAMinute) {
  ExpectDropped(/*samples=*/1, /*tokens=*/600, "why=\"it takes nothing\"");
}

TEST(SlowClientTest, OneThatLeavesTooMuchIsDroppedAtOnce) {
  ExpectDropped(/*samples=*/16, /*tokens=*/400, "why=\"more waits for it than it may\"");
}

}  // namespace
}  // namespace tandem
