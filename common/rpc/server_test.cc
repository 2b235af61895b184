#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/rpc/channel.h"
#include "common/rpc/client_stream.h"
#include "common/rpc/fake_control.h"
#include "common/rpc/frame_codec.h"
#include "common/rpc/server_runner.h"
#include "common/rpc/session_server.h"
#include "common/rpc/unary_method.h"
#include "common/rpc/worker_agent.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "tandem/v1/control.grpc.pb.h"
#include "tandem/v1/worker.grpc.pb.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;
namespace health = grpc::health::v1;
namespace reflection = grpc::reflection::v1alpha;

constexpr absl::Duration kPatience = FakeControl::kPatience;

// Answers every start with one token, and notes what it sees.
class EchoHandler final : public SessionHandler {
 public:
  void OnCommands(SessionId session, CommandFrame frame) override {
    EventFrame events;
    for (const StartLeg& start : frame.starts) events.events.push_back({.id = start.id, .tokens = {{.token = 7}}});
    sessions.Send(session, std::move(events));
  }
  void OnSessionClosed(SessionId session) override {
    absl::MutexLock lock(&mu_);
    closed_.push_back(session);
  }
  std::vector<SessionId> AwaitClosed(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return closed_.size() >= count; };
    mu_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
    return closed_;
  }
  SessionServer sessions{*this};

 private:
  absl::Mutex mu_;
  std::vector<SessionId> closed_ ABSL_GUARDED_BY(mu_);
};

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer(); }
  void StartServer() {
    decode_ = std::make_unique<v1::Decode::AsyncService>();  // One serves one server.
    ASSERT_OK_AND_ASSIGN(server_,
                         ServerRunner::Start("127.0.0.1:0", {{decode_.get(), v1::Decode::service_full_name()}}));
    handler_.sessions.Start(server_->loop(), [this](auto... arguments) { decode_->RequestSession(arguments...); });
    server_->StartThread();
    channel_ = NewChannel(server_->address(), /*tls=*/nullptr);
  }
  std::string CheckHealth(const std::string& service) {
    health::HealthCheckRequest request;
    request.set_service(service);
    health::HealthCheckResponse response;
    grpc::ClientContext context;
    grpc::Status status = health::Health::NewStub(channel_)->Check(&context, request, &response);
    if (!status.ok()) return status.error_message();
    return health::HealthCheckResponse::ServingStatus_Name(response.status());
  }

  EchoHandler handler_;
  std::unique_ptr<v1::Decode::AsyncService> decode_;
  std::unique_ptr<ServerRunner> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ServerTest, ATakenPortIsAnError) {
  EXPECT_THAT(ServerRunner::Start(server_->address(), {}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(server_->address())));
}

TEST_F(ServerTest, HealthIsThatOfTheServerAndOfEachService) {
  EXPECT_EQ(CheckHealth(""), "SERVING");
  EXPECT_EQ(CheckHealth("tandem.v1.Decode"), "SERVING");
  EXPECT_EQ(CheckHealth("tandem.v1.Router"), "service: \"tandem.v1.Router\" is not served here");
  server_->SetServing(false);
  EXPECT_EQ(CheckHealth("tandem.v1.Decode"), "NOT_SERVING");
}

TEST_F(ServerTest, AHealthWatchTellsChangesAndEndsWithTheServer) {
  grpc::ClientContext context;
  auto watch = health::Health::NewStub(channel_)->Watch(&context, health::HealthCheckRequest());
  health::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  server_->SetServing(true);  // No change: not told.
  server_->SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  server_->Shutdown(kPatience);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, AHealthWatchOfAnUnknownServiceSaysSoAndStays) {
  grpc::ClientContext context;
  health::HealthCheckRequest request;
  request.set_service(std::string("nobody"));
  auto watch = health::Health::NewStub(channel_)->Watch(&context, request);
  health::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVICE_UNKNOWN);
  EXPECT_EQ(CheckHealth(""), "SERVING");  // An end that was sent before would be here by now.
  context.TryCancel();
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// All requests are sent before the first answer is read.
std::vector<reflection::ServerReflectionResponse> Ask(
    std::shared_ptr<grpc::Channel> channel, const std::vector<reflection::ServerReflectionRequest>& requests) {
  grpc::ClientContext context;
  auto stream = reflection::ServerReflection::NewStub(channel)->ServerReflectionInfo(&context);
  for (const auto& request : requests) stream->Write(request);
  stream->WritesDone();
  std::vector<reflection::ServerReflectionResponse> responses;
  reflection::ServerReflectionResponse response;
  while (stream->Read(&response)) responses.push_back(response);
  EXPECT_TRUE(stream->Finish().ok());
  return responses;
}

TEST_F(ServerTest, ReflectionListsTheServicesAndShowsTheirFiles) {
  reflection::ServerReflectionRequest list, by_symbol, by_name;
  list.set_list_services("*");
  by_symbol.set_file_containing_symbol("tandem.v1.Decode.Session");
  by_name.set_file_by_filename("tandem/v1/common.proto");
  auto responses = Ask(channel_, {list, by_symbol, by_name});
  ASSERT_EQ(responses.size(), 3u);
  std::vector<std::string> names;
  for (const auto& service : responses[0].list_services_response().service()) names.push_back(service.name());
  EXPECT_THAT(names, UnorderedElementsAre("tandem.v1.Decode", "grpc.health.v1.Health",
                                          "grpc.reflection.v1alpha.ServerReflection"));
  std::vector<std::string> files;
  for (const std::string& bytes : responses[1].file_descriptor_response().file_descriptor_proto()) {
    google::protobuf::FileDescriptorProto file;
    ASSERT_TRUE(file.ParseFromString(bytes));
    files.push_back(file.name());
  }
  EXPECT_EQ(files.front(), "tandem/v1/worker.proto");
  EXPECT_THAT(files, Contains("tandem/v1/common.proto"));  // It imports it.
  EXPECT_EQ(responses[2].original_request().file_by_filename(), "tandem/v1/common.proto");
  EXPECT_GE(responses[2].file_descriptor_response().file_descriptor_proto_size(), 1);
}

TEST_F(ServerTest, ReflectionSaysWhatItCannotFind) {
  reflection::ServerReflectionRequest symbol, extension, empty, numbers;
  symbol.set_file_containing_symbol("no.such.Thing");
  extension.mutable_file_containing_extension()->set_containing_type("tandem.v1.EventFrame");
  extension.mutable_file_containing_extension()->set_extension_number(9);
  numbers.set_all_extension_numbers_of_type("tandem.v1.EventFrame");
  auto responses = Ask(channel_, {symbol, extension, empty, numbers});
  ASSERT_EQ(responses.size(), 4u);
  EXPECT_EQ(responses[0].error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(responses[0].error_response().error_message(), HasSubstr("no.such.Thing"));
  EXPECT_EQ(responses[1].error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(responses[2].error_response().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(responses[3].all_extension_numbers_response().base_type_name(), "tandem.v1.EventFrame");
}

// A router's end, which counts what comes.
class CountingStream final : public ClientStream<v1::CommandFrame, v1::EventFrame> {
 public:
  std::vector<RequestId> AwaitEvents(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return ids_.size() >= count; };
    mu_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
    return ids_;
  }
  grpc::StatusCode AwaitClosed() {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&closed_), kPatience));
    return status_.error_code();
  }

 private:
  void OnMessage(v1::EventFrame& frame) override {
    absl::MutexLock lock(&mu_);
    for (const LegEvent& event : DecodeEvents(frame).events) ids_.push_back(event.id);
  }
  void OnClosed(const grpc::Status& status) override {
    absl::MutexLock lock(&mu_);
    status_ = status;
    closed_ = true;
  }
  absl::Mutex mu_;
  std::vector<RequestId> ids_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
};

class SessionTest : public ServerTest {
 protected:
  std::shared_ptr<CountingStream> Dial() {
    auto stream = std::make_shared<CountingStream>();
    stream->Start(server_->loop(),
                  [&](auto... arguments) { return v1::Decode::NewStub(channel_)->PrepareAsyncSession(arguments...); });
    return stream;
  }
  static void SendStart(CountingStream& stream, uint64_t id) {
    CommandFrame frame;
    frame.starts.push_back({.id = RequestId(id)});
    stream.Send([&](v1::CommandFrame& out) { EncodeCommands(frame, &out); });
  }
};

TEST_F(SessionTest, EveryCommandArrivesOnceAndInOrderHoweverFastTheyCome) {
  auto stream = Dial();
  std::vector<RequestId> sent;
  for (uint64_t id = 1; id <= 1000; ++id) {
    SendStart(*stream, id);  // The first ones before the stream is connected.
    sent.push_back(RequestId(id));
  }
  EXPECT_EQ(stream->AwaitEvents(sent.size()), sent);
  stream->Cancel();
  EXPECT_EQ(stream->AwaitClosed(), grpc::StatusCode::CANCELLED);
  EXPECT_THAT(handler_.AwaitClosed(1), ElementsAre(1));
}

TEST_F(SessionTest, ALastMessageArrivesBeforeTheEnd) {
  auto stream = Dial();
  CommandFrame frame;
  frame.starts.push_back({.id = RequestId(5)});
  stream->SendLast([&](v1::CommandFrame& out) { EncodeCommands(frame, &out); });
  EXPECT_EQ(stream->AwaitClosed(), grpc::StatusCode::OK);
  EXPECT_THAT(stream->AwaitEvents(1), ElementsAre(RequestId(5)));
}

TEST_F(SessionTest, AServerThatClosesEndsItsStreamsAndRefusesNewOnes) {
  auto stream = Dial();
  SendStart(*stream, 1);
  EXPECT_THAT(stream->AwaitEvents(1), SizeIs(1));
  handler_.sessions.Close();
  EXPECT_EQ(stream->AwaitClosed(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Dial()->AwaitClosed(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(handler_.AwaitClosed(2), ElementsAre(1, 2));
}

TEST_F(SessionTest, TheServerEndsWellWhileItsOwnStreamsEnd) {
  for (int round = 0; round < 50; ++round) {
    std::vector<std::shared_ptr<CountingStream>> streams;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(Dial());
      SendStart(*streams.back(), 1);
    }
    if (round % 2 == 0) streams[0]->AwaitEvents(1);
    for (const auto& stream : streams) stream->Cancel();
    server_.reset();  // With events on their way that begin the next operation.
    for (const auto& stream : streams) EXPECT_NE(stream->AwaitClosed(), grpc::StatusCode::OK);
    StartServer();
  }
}

TEST_F(SessionTest, APeerThatReadsNothingHoldsUpNoShutdown) {
  grpc::ClientContext context;
  auto stream = v1::Decode::NewStub(channel_)->Session(&context);
  v1::CommandFrame frame;
  CommandFrame start;
  start.starts.push_back({.id = RequestId(1)});
  EncodeCommands(start, &frame);
  ASSERT_TRUE(stream->Write(frame));
  v1::EventFrame first;
  ASSERT_TRUE(stream->Read(&first));
  EventFrame large;  // More than any window, so that its write does not end.
  large.events.push_back({.id = RequestId(1), .tokens = std::vector<SampledToken>(4 << 20, {.token = 7})});
  handler_.sessions.Send(1, std::move(large));
  handler_.sessions.Close();
  server_.reset();
  EXPECT_THAT(handler_.AwaitClosed(1), ElementsAre(1));
}

TEST(FrameCodecTest, FormatsOfAnswersComeThrough) {
  using Kind = OutputFormat::Kind;
  using Reasoning = OutputFormat::Reasoning;
  for (Kind kind : {Kind::kJsonSchema, Kind::kRegex, Kind::kLark}) {
    for (Reasoning reasoning : {Reasoning::kNone, Reasoning::kMayComeFirst, Reasoning::kIsOpen}) {
      SamplingParams sampling;
      sampling.format = std::make_shared<OutputFormat>(OutputFormat{kind, "text", reasoning});
      v1::SamplingParams proto;
      EncodeSampling(sampling, &proto);
      const SamplingParams decoded = DecodeSampling(proto);
      ASSERT_NE(decoded.format, nullptr);
      EXPECT_EQ(decoded.format->kind, kind);
      EXPECT_EQ(decoded.format->text, "text");
      EXPECT_EQ(decoded.format->reasoning, reasoning);
    }
  }
  v1::SamplingParams none;
  EncodeSampling({}, &none);
  EXPECT_FALSE(none.has_response_format());
  EXPECT_EQ(DecodeSampling(none).format, nullptr);
  none.mutable_response_format();  // As of a newer version: not what any text would do for.
  ASSERT_NE(DecodeSampling(none).format, nullptr);
  EXPECT_EQ(DecodeSampling(none).format->text, "");
}

TEST(FrameCodecTest, TheTraceOfACallComesThrough) {
  CommandFrame frame;
  frame.starts.push_back({.id = RequestId(1), .name = "r", .trace_parent = "00-abc-def-01"});
  v1::CommandFrame proto;
  EncodeCommands(frame, &proto);
  EXPECT_EQ(DecodeCommands(proto).starts[0].trace_parent, "00-abc-def-01");
}

TEST(FrameCodecTest, WhenATokenIsWantedComesThrough) {
  CommandFrame frame;
  for (absl::Duration due : {absl::InfiniteDuration(), absl::Seconds(3), absl::Milliseconds(-20)}) {
    frame.starts.push_back({.id = RequestId(1), .priority = 7, .due = due});
  }
  frame.starts.push_back({.id = RequestId(1), .remaining = absl::Seconds(2), .due = absl::ZeroDuration()});
  v1::CommandFrame proto;
  EncodeCommands(frame, &proto);
  const std::vector<StartLeg> starts = DecodeCommands(proto).starts;
  ASSERT_THAT(starts, SizeIs(4));
  EXPECT_EQ(starts[0].priority, 7);
  EXPECT_EQ(starts[0].due, absl::InfiniteDuration());
  EXPECT_EQ(starts[0].remaining, absl::InfiniteDuration());
  EXPECT_EQ(starts[1].due, absl::Seconds(3));
  EXPECT_EQ(starts[2].due, absl::Milliseconds(-20));
  EXPECT_EQ(starts[3].due, absl::Microseconds(1));  // 0 says nothing.
  EXPECT_EQ(starts[3].remaining, absl::Seconds(2));
}

TEST_F(SessionTest, ADeadAddressEndsTheStream) {
  auto stream = std::make_shared<CountingStream>();
  channel_ = NewChannel("127.0.0.1:1", /*tls=*/nullptr);
  stream->Start(server_->loop(),
                [&](auto... arguments) { return v1::Decode::NewStub(channel_)->PrepareAsyncSession(arguments...); });
  SendStart(*stream, 1);
  EXPECT_EQ(stream->AwaitClosed(), grpc::StatusCode::UNAVAILABLE);
}

// An agent whose heartbeats say in their state whether all must be told.
std::unique_ptr<WorkerAgent> StartAgent(FakeControl& control, const std::string& address, absl::Duration heartbeat) {
  WorkerAgent::Options options{
      .router_address = address,
      .registration = {.worker_id = "w", .incarnation = Incarnation(1)},
      .heartbeat = heartbeat,
      .collect = [](bool restart) { return WorkerHeartbeat{.state = restart ? "all" : "new"}; },
      .on_directive = [](const RouterDirective&) {}};
  return std::make_unique<WorkerAgent>(control.loop(), std::move(options));
}

TEST(WorkerAgentTest, RegistersAndTellsAllAgainAfterALoss) {
  FakeControl control(/*answers=*/true);
  auto agent = StartAgent(control, control.address(), absl::Milliseconds(1));
  std::vector<std::string> reports = control.AwaitReports(3);
  EXPECT_EQ(std::vector<std::string>(reports.begin(), reports.begin() + 3),
            (std::vector<std::string>{"w", "all", "new"}));
  control.EndStreams();
  // Reports of the old stream may still come in between.
  auto second = reports.end();
  do {
    reports = control.AwaitReports(reports.size() + 1);
    second = std::find(reports.begin() + 1, reports.end(), "w");
  } while (reports.end() - second < 2 && reports.size() < 100'000);
  ASSERT_GE(reports.end() - second, 2);
  EXPECT_EQ(*(second + 1), "all");
}

TEST(WorkerAgentTest, ItsLastWordArrivesBeforeItLeaves) {
  FakeControl control(/*answers=*/true);
  auto agent = StartAgent(control, control.address(), absl::Hours(1));
  EXPECT_THAT(control.AwaitReports(2), SizeIs(2));
  agent.reset();
  EXPECT_THAT(control.AwaitReports(3), ElementsAre("w", "all", "new"));
}

TEST(WorkerAgentTest, LeavesWhileNobodyIsThere) {
  FakeControl control(/*answers=*/false);
  StartAgent(control, "127.0.0.1:1", absl::Milliseconds(1)).reset();
  EXPECT_THAT(control.AwaitReports(0), SizeIs(0));
}

TEST(UnaryMethodTest, AnAnswerThatNobodyWillGiveIsUnavailable) {
  v1::Control::AsyncService control;
  ASSERT_OK_AND_ASSIGN(auto server, ServerRunner::Start("127.0.0.1:0", {{&control, v1::Control::service_full_name()}}));
  ServeUnary<v1::DrainRequest, v1::DrainResponse>(
      server->loop(), [&](auto... arguments) { control.RequestDrain(arguments...); },
      [](const v1::DrainRequest& request, v1::DrainResponse*, const UnaryDone& done) {
        if (request.worker_id() == "known") done(grpc::Status::OK);
      });
  server->StartThread();
  auto stub = v1::Control::NewStub(NewChannel(server->address(), /*tls=*/nullptr));
  for (const auto& [worker, code] :
       {std::pair("known", grpc::StatusCode::OK), std::pair("lost", grpc::StatusCode::UNAVAILABLE)}) {
    grpc::ClientContext context;
    v1::DrainRequest request;
    request.set_worker_id(std::string(worker));
    v1::DrainResponse response;
    EXPECT_EQ(stub->Drain(&context, request, &response).error_code(), code) << worker;
  }
}

}  // namespace
}  // namespace tandem
