#include "router/http/span_exporter.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/http/http_server.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

// A collector that keeps what it gets.
class Collector final : public HttpHandler {
 public:
  explicit Collector(int status) : status_(status), server_(*HttpServer::Create({}, *this)) { server_->Start(); }
  ~Collector() override { server_->Stop(absl::Milliseconds(100)); }
  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) override {
    reply->Send({.status = status_, .body = "{}"});
    absl::MutexLock lock(&mu_);
    bodies_.push_back(request.method + " " + request.path + " " + request.body);
  }
  std::string ErrorBody(int, absl::string_view message) override { return std::string(message); }
  std::vector<std::string> AwaitBodies(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return bodies_.size() >= count; };
    mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(10));
    return bodies_;
  }
  std::string address() const { return server_->address(); }

 private:
  const int status_;
  absl::Mutex mu_;
  std::vector<std::string> bodies_ ABSL_GUARDED_BY(mu_);
  const std::unique_ptr<HttpServer> server_;
};

Span SomeSpan() {
  return {.trace_id = std::string(32, 'a'),
          .span_id = std::string(16, 'b'),
          .name = "tandem.request",
          .start = absl::FromUnixNanos(1'000'000'000'000'000'001),
          .end = absl::FromUnixNanos(1'000'000'000'000'000'002),
          .attributes = {{"k", "v\"w"}, {"n", int64_t{7}}},
          .error = "UNAVAILABLE: gone"};
}

TEST(SpanExporterTest, SpansAreOtlpInJson) {
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(OtlpJson({SomeSpan(), SomeSpan()}, "s"), error);
  ASSERT_FALSE(error);
  EXPECT_EQ(boost::json::serialize(value.at_pointer("/resourceSpans/0/resource/attributes/0/value/stringValue")),
            "\"s\"");
  EXPECT_EQ(
      boost::json::serialize(value.at_pointer("/resourceSpans/0/scopeSpans/0/spans/1")),
      R"({"traceId":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","spanId":"bbbbbbbbbbbbbbbb","parentSpanId":"",)"
      R"("name":"tandem.request","kind":2,"startTimeUnixNano":"1000000000000000001",)"
      R"("endTimeUnixNano":"1000000000000000002","attributes":[{"key":"k","value":{"stringValue":"v\"w"}},{"key":"n","value":{"intValue":"7"}}],)"
      R"("status":{"code":2,"message":"UNAVAILABLE: gone"}})");
}

TEST(SpanExporterTest, SendsWhatItIsGivenAtTheLatestAtItsEnd) {
  Collector collector(200);
  {
    SpanExporter exporter({.endpoint = collector.address(), .delay = absl::Hours(1)});
    exporter.Add({SomeSpan()});
    exporter.Add({SomeSpan()});
    EXPECT_EQ(exporter.dropped(), 0);
  }
  const std::vector<std::string> bodies = collector.AwaitBodies(1);
  ASSERT_THAT(bodies, SizeIs(1));  // One batch.
  EXPECT_THAT(bodies[0], HasSubstr("POST /v1/traces {\"resourceSpans\""));
}

TEST(SpanExporterTest, WhatTheCollectorDoesNotTakeIsDropped) {
  Collector refuses(503);
  for (const std::string& endpoint : {refuses.address(), std::string("127.0.0.1:1")}) {
    SpanExporter exporter({.endpoint = endpoint, .delay = absl::Milliseconds(1)});
    exporter.Add({SomeSpan()});
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (exporter.dropped() == 0 && absl::Now() < deadline) std::this_thread::yield();
    EXPECT_EQ(exporter.dropped(), 1) << endpoint;
  }
}

TEST(SpanExporterTest, TooManyAreDropped) {
  SpanExporter exporter({.endpoint = "127.0.0.1:1", .delay = absl::Hours(1)});
  for (int i = 0; i < 8'193; ++i) exporter.Add({SomeSpan()});
  EXPECT_EQ(exporter.dropped(), 1);
}

}  // namespace
}  // namespace tandem
