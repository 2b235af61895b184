#include "client/router_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tandem/v1/router.grpc.pb.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

TEST(RouterClientTest, OneThatAsksTooEarlyFindsTheRouterWhenItHasStarted) {
  const std::string address = "unix:" + testing::TempDir() + "router_client_test_" + std::to_string(getpid());
  RouterClient client(address);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(client.Status().status(),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no router can be reached")));
  }
  v1::Router::Service service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  // Each call waits for a moment; calls that fail at once would come to thousands.
  int calls = 1;
  while (absl::IsUnavailable(client.Status().status()) && calls < 100) ++calls;
  EXPECT_LT(calls, 50);
  EXPECT_THAT(client.Status().status(), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("is no router")));
}

}  // namespace
}  // namespace tandem
