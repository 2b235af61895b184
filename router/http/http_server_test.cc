#include "router/http/http_server.h"

#include <deque>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/http_client.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// Answers "/echo" with what was sent, "/stream" with a stream that the test feeds, and leaves "/wait" open.
class TestHandler final : public HttpHandler {
 public:
  void Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) override {
    reply->OnGone([this] { Count(gone_); });
    reply->OnOver([this] { Count(over_); });
    if (request.path == "/echo") {
      reply->Send({.body = absl::StrCat(request.method, " ", request.headers.Get("X-Test"), " ", request.body),
                   .content_type = "text/plain"});
      return;
    }
    if (request.path == "/stream") reply->ExpectStream();
    absl::MutexLock lock(&mu_);
    open_.push_back(std::move(reply));
  }
  std::string ErrorBody(int status, absl::string_view message) override {
    return absl::StrCat("{\"status\":", status, ",\"message\":\"", message, "\"}");
  }

  std::shared_ptr<HttpReply> TakeOpen() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](std::deque<std::shared_ptr<HttpReply>>* open) { return !open->empty(); }, &open_));
    std::shared_ptr<HttpReply> reply = std::move(open_.front());
    open_.pop_front();
    return reply;
  }
  void AwaitGone(int count) { Await(gone_, count); }
  void AwaitOver(int count) { Await(over_, count); }

 private:
  void Count(int& counter) {
    absl::MutexLock lock(&mu_);
    ++counter;
  }
  void Await(int& counter, int count) {
    absl::MutexLock lock(&mu_);
    auto reached = [&] { return counter >= count; };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&reached), absl::Seconds(10)));
  }

  absl::Mutex mu_;
  std::deque<std::shared_ptr<HttpReply>> open_ ABSL_GUARDED_BY(mu_);
  int gone_ = 0, over_ = 0;
};

class HttpServerRig : public testing::Test {
 protected:
  explicit HttpServerRig(bool with_tls = false) : with_tls_(with_tls) {}
  void Start() {
    if (with_tls_) {
      const TestAuthority authority("test");
      const TestAuthority::Signed own = authority.Sign({"tandem"});
      const TlsIdentity identity{own.certificate, own.key, authority.certificate(), "", "tandem"};
      options_.tls = *TlsContext::ForServer(identity, TlsContext::Peer::kAnyone);
      client_tls_ = *TlsContext::ForClient({.authorities = authority.certificate(), .name = "tandem"});
    }
    absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Create(options_, handler_);
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    server_->Start();
  }
  // Waits for it.
  void OnServer(absl::AnyInvocable<void()> work) {
    absl::Mutex mu;
    bool done = false;
    server_->Post([&, work = std::move(work)]() mutable {
      work();
      absl::MutexLock lock(&mu);
      done = true;
    });
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&done));
  }
  const std::string& address() { return server_->address(); }

  const bool with_tls_;
  HttpServer::Options options_;
  std::shared_ptr<const TlsContext> client_tls_;
  TestHandler handler_;
  std::unique_ptr<HttpServer> server_;
};

// Without and with TLS.
class HttpServerTest : public HttpServerRig, public testing::WithParamInterface<bool> {
 protected:
  HttpServerTest() : HttpServerRig(GetParam()) {}
};

TEST_P(HttpServerTest, AnswersManyRequestsOnOneConnection) {
  Start();
  HttpClient client(address(), client_tls_);
  for (int i = 0; i < 3; ++i) {
    HttpAnswer answer = client.Ask("POST", "/echo?x=y", absl::StrCat("body ", i), "x-test: header\r\n");
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, absl::StrCat("POST header body ", i));
    EXPECT_EQ(answer.headers["content-type"], "text/plain");
    EXPECT_THAT(answer.headers["date"], HasSubstr("GMT"));
  }
  handler_.AwaitOver(3);
}

TEST_P(HttpServerTest, AnswersPipelinedRequestsInTheirOrder) {
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/wait");
  std::string rest;
  for (int i = 0; i < 50; ++i) {
    absl::StrAppend(&rest, "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n", 10 + i);
  }
  client.Send(rest);
  std::shared_ptr<HttpReply> first = handler_.TakeOpen();
  OnServer([&] { first->Send({.body = "first"}); });
  EXPECT_EQ(client.Read().body, "first");
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.Read().body, absl::StrCat("POST  ", 10 + i));
}

TEST_P(HttpServerTest, ReadsRequestsThatComeByteByByte) {
  Start();
  HttpClient client(address(), client_tls_);
  for (char byte : std::string("POST http://host/echo HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc")) {
    client.Send(std::string(1, byte));
  }
  EXPECT_EQ(client.Read().body, "POST  abc");
}

TEST_P(HttpServerTest, ReadsChunkedBodiesAndSaysContinue) {
  Start();
  HttpClient client(address(), client_tls_);
  client.Send("POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadHead().status, 100);
  client.Send("3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
  EXPECT_EQ(client.Read().body, "POST  abcdefg");
}

TEST_P(HttpServerTest, ReadsChunksThatComeByteByByte) {
  Start();
  HttpClient client(address(), client_tls_);
  for (char byte : std::string("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;e=v\r\nab\r\n0\r\n\r\n")) {
    client.Send(std::string(1, byte));
  }
  EXPECT_EQ(client.Read().body, "POST  ab");
}

TEST_P(HttpServerTest, AnswersHeadWithoutABody) {
  Start();
  HttpClient client(address(), client_tls_);
  HttpAnswer answer = client.Ask("HEAD", "/echo");
  EXPECT_EQ(answer.headers["content-length"], "6");
  EXPECT_EQ(client.Ask("POST", "/echo", "x").body, "POST  x");
}

TEST_P(HttpServerTest, ClosesAfterTheAnswerWhereTheClientWantsIt) {
  Start();
  HttpClient client(address(), client_tls_);
  HttpAnswer answer = client.Ask("GET", "/echo", "", "Connection: close\r\n");
  EXPECT_EQ(answer.headers["connection"], "close");
  EXPECT_TRUE(client.ReadsEnd());
  HttpClient old(address(), client_tls_);
  old.Send("GET /echo HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.Read().body, "GET  ");
  EXPECT_TRUE(old.ReadsEnd());
}

TEST_P(HttpServerTest, StreamsEachTurnAtOnce) {
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/stream");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  for (int i = 0; i < 3; ++i) {
    OnServer([&] { reply->Write(absl::StrCat("data: ", i, "\n\n")); });
    if (i == 0) {
      HttpAnswer head = client.ReadHead();
      EXPECT_EQ(head.status, 200);
      EXPECT_EQ(head.headers["transfer-encoding"], "chunked");
      EXPECT_THAT(head.headers["content-type"], StartsWith("text/event-stream"));
    }
    EXPECT_EQ(client.ReadChunk(), absl::StrCat("data: ", i, "\n\n"));
  }
  OnServer([&] { reply->EndStream(); });
  EXPECT_EQ(client.ReadChunk(), "");
  EXPECT_EQ(client.Ask("GET", "/echo").status, 200);  // The connection goes on.
}

TEST_P(HttpServerTest, AnOldClientsStreamEndsWithItsConnection) {
  Start();
  HttpClient client(address(), client_tls_);
  client.Send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  OnServer([&] {
    reply->Write("data: 1\n\n");
    reply->EndStream();
  });
  HttpAnswer answer = client.Read();
  EXPECT_EQ(answer.body, "data: 1\n\n");
  EXPECT_EQ(answer.headers["connection"], "close");
}

TEST_P(HttpServerTest, TellsWhoeverAnswersThatTheClientLeft) {
  Start();
  {
    HttpClient client(address(), client_tls_);
    client.SendRequest("GET", "/stream");
    handler_.TakeOpen();
  }
  handler_.AwaitGone(1);
  handler_.AwaitOver(1);
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/wait");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  client.Shutdown();
  handler_.AwaitGone(2);
  OnServer([&] {  // Too late, and harmless.
    reply->Write("data: 1\n\n");
    reply->Send({.body = "x"});
    reply->EndStream();
  });
}

// What a callback holds may hold the reply: such a circle must not outlive the answer.
TEST_P(HttpServerTest, CallbacksEndWithTheAnswer) {
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/wait");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  std::weak_ptr<HttpReply> watched = reply;
  OnServer([&] {
    reply->OnGone([reply] {});
    reply->OnOver([reply] {});
    reply->Send({.body = "x"});
    reply = nullptr;
  });
  EXPECT_EQ(client.Read().body, "x");
  EXPECT_EQ(client.Ask("GET", "/echo").status, 200);
  EXPECT_TRUE(watched.expired());
}

TEST_P(HttpServerTest, DropsAClientThatDoesNotReadItsStream) {
  options_.max_unsent_bytes = 100'000;
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/stream");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  const std::string event(10'000, 'x');
  for (int i = 0; i < 2000; ++i) OnServer([&] { reply->Write(event); });  // More than the kernel's buffers hold.
  handler_.AwaitGone(1);
}

TEST_P(HttpServerTest, DropsAClientThatTakesNothingForTooLong) {
  options_.write_timeout = absl::Milliseconds(50);
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/wait");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  OnServer([&] { reply->Send({.body = std::string(50 << 20, 'x')}); });
  handler_.AwaitOver(1);
}

TEST_P(HttpServerTest, PingsAStreamThatIsSilent) {
  options_.ping_interval = absl::Milliseconds(20);
  Start();
  HttpClient client(address(), client_tls_);
  client.SendRequest("GET", "/stream");
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_EQ(client.ReadChunk(), ":\n\n");
  EXPECT_EQ(client.ReadChunk(), ":\n\n");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  OnServer([&] {
    EXPECT_TRUE(reply->stream_started());
    reply->EndStream();
  });
  std::string chunk;
  while (!(chunk = client.ReadChunk()).empty()) EXPECT_EQ(chunk, ":\n\n");
}

TEST_P(HttpServerTest, EndsConnectionsThatAreIdle) {
  options_.idle_timeout = absl::Milliseconds(30);
  Start();
  HttpClient silent(address(), client_tls_), used(address(), client_tls_);
  EXPECT_EQ(used.Ask("GET", "/echo").status, 200);
  EXPECT_TRUE(silent.ReadsEnd());
  EXPECT_TRUE(used.ReadsEnd());
}

TEST_P(HttpServerTest, RefusesRequestsThatTakeTooLong) {
  options_.request_timeout = absl::Milliseconds(30);
  Start();
  for (const char* begin : {"G", "POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"}) {
    HttpClient client(address(), client_tls_);
    client.Send(begin);
    EXPECT_EQ(client.Read().status, 408) << begin;
    EXPECT_TRUE(client.ReadsEnd());
  }
}

struct Refused {
  std::string name, bytes;
  int status;
};

class RefusedRequestTest : public HttpServerRig, public testing::WithParamInterface<Refused> {};

TEST_P(RefusedRequestTest, IsAnsweredAndTheConnectionEnds) {
  options_.max_body_bytes = 1000;
  options_.max_header_bytes = 2000;
  Start();
  HttpClient client(address(), client_tls_);
  client.Send(GetParam().bytes);
  HttpAnswer answer = client.Read();
  EXPECT_EQ(answer.status, GetParam().status);
  EXPECT_THAT(answer.body, HasSubstr(absl::StrCat("\"status\":", GetParam().status)));
  EXPECT_EQ(answer.headers["connection"], "close");
  EXPECT_TRUE(client.ReadsEnd());
  EXPECT_EQ(HttpClient(address(), client_tls_).Ask("GET", "/echo").status, 200);
}

INSTANTIATE_TEST_SUITE_P(
    Requests, RefusedRequestTest,
    testing::Values(
        Refused{"NoHttp", "\x16\x03\x01\x02\r\n\r\n", 400}, Refused{"NoVersion", "GET /\r\n\r\n", 400},
        Refused{"BadLength", "POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
        Refused{"TwoLengths", "POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
        Refused{"LengthAndChunks",
                "POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        Refused{"OtherCoding", "POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400},
        Refused{"BadChunk", "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
        Refused{"LongBody", "POST /echo HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413},
        Refused{
            "LongChunks",
            absl::StrCat("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n", std::string(2000, 'x')),
            413},
        Refused{"LongHeader", absl::StrCat("GET /echo HTTP/1.1\r\nX: ", std::string(3000, 'x'), "\r\n\r\n"), 431},
        Refused{"LongHeaderWithoutEnd", absl::StrCat("GET /echo HTTP/1.1\r\nX: ", std::string(3000, 'x')), 431},
        Refused{"LongTarget", absl::StrCat("GET /", std::string(3000, 'x')), 431}),
    [](const auto& info) { return info.param.name; });

TEST_P(HttpServerTest, RefusesAHeaderOfTooManyLinesHoweverTheyCome) {
  options_.max_header_bytes = 2000;
  Start();
  HttpClient client(address(), client_tls_);
  client.Send("GET /echo HTTP/1.1\r\n");
  for (int i = 0; i < 100; ++i) {
    if (!client.Send(absl::StrCat("X-", i, ": ", std::string(30, 'x'), "\r\n"))) break;
  }
  EXPECT_EQ(client.Read().status, 431);
}

TEST_P(HttpServerTest, RefusesBodiesOverWhatAllMayHold) {
  options_.max_unfinished_bytes = 5000;
  Start();
  HttpClient first(address(), client_tls_), second(address(), client_tls_), third(address(), client_tls_);
  const std::string begin = absl::StrCat("POST /echo HTTP/1.1\r\nContent-Length: 4000\r\n\r\n", std::string(3000, 'x'));
  first.Send(begin);
  EXPECT_EQ(third.Ask("GET", "/echo").status, 200);  // What the first sent has been read now.
  second.Send(begin);
  EXPECT_EQ(second.Read().status, 503);
  EXPECT_EQ(third.Ask("POST", "/echo", std::string(3000, 'z')).status, 200);  // Whole at once.
  first.Send(std::string(1000, 'y'));
  EXPECT_EQ(first.Read().status, 200);
  third.Send(begin);
  third.Send(std::string(1000, 'y'));
  EXPECT_EQ(third.Read().status, 200);  // What the others held is free again.
}

TEST_P(HttpServerTest, RefusesConnectionsOverTheLimit) {
  options_.max_connections = 2;
  Start();
  HttpClient first(address(), client_tls_);
  EXPECT_EQ(first.Ask("GET", "/echo").status, 200);
  {
    HttpClient second(address(), client_tls_);
    EXPECT_EQ(second.Ask("GET", "/echo").status, 200);
    HttpClient third(address(), client_tls_);
    EXPECT_EQ(third.Read().status, 503);
  }
  // There is room again once the server has seen them leave.
  int status = 503;
  for (absl::Time start = Clock::Real().Now(); status != 200 && Clock::Real().Now() - start < absl::Seconds(10);) {
    status = HttpClient(address(), client_tls_).Ask("GET", "/echo").status;
  }
  EXPECT_EQ(status, 200);
}

TEST_P(HttpServerTest, StopLetsAnswersEndAndClosesTheRest) {
  Start();
  HttpClient idle(address(), client_tls_), answered(address(), client_tls_), stuck(address(), client_tls_);
  EXPECT_EQ(idle.Ask("GET", "/echo").status, 200);
  answered.SendRequest("GET", "/wait");
  std::shared_ptr<HttpReply> reply = handler_.TakeOpen();
  stuck.SendRequest("GET", "/wait");
  handler_.TakeOpen();
  server_->Post([reply] { reply->Send({.body = "last"}); });
  server_->Stop(absl::Milliseconds(100));
  EXPECT_TRUE(idle.ReadsEnd());
  HttpAnswer answer = answered.Read();
  EXPECT_EQ(answer.body, "last");
  EXPECT_EQ(stuck.Read().status, 0);
  handler_.AwaitGone(1);
  handler_.AwaitOver(3);
}

TEST_P(HttpServerTest, AnAddressInUseIsNamed) {
  Start();
  HttpServer::Options options;
  options.address = address();
  EXPECT_THAT(HttpServer::Create(options, handler_).status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address())));
  options.address = "nowhere.invalid:1";
  EXPECT_THAT(HttpServer::Create(options, handler_).status(), StatusIs(absl::StatusCode::kInvalidArgument));
}

class HttpsServerTest : public HttpServerRig {
 protected:
  HttpsServerTest() : HttpServerRig(/*with_tls=*/true) {}
};

// With nothing said, half a handshake, and all of one without a request.
TEST_F(HttpsServerTest, ClientsThatDoNotFinishTheirHandshakeAreDropped) {
  options_.request_timeout = absl::Milliseconds(100);
  options_.idle_timeout = absl::Milliseconds(100);
  Start();
  for (const absl::string_view begin : {"", "\x16\x03\x01\x02", "\x16\x03\x01\x02\x01\x01\x01\xfc\x03\x03"}) {
    HttpClient client(address());  // Without TLS of its own.
    EXPECT_TRUE(client.Send(begin));
    EXPECT_TRUE(client.ReadsEnd());
  }
  HttpClient silent(address(), client_tls_);
  EXPECT_TRUE(silent.ReadsEnd());
}

TEST_F(HttpsServerTest, RequestsInTheClearAreToldSo) {
  Start();
  const HttpAnswer answer = HttpClient(address()).Ask("GET", "/echo");
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("HTTPS"));
}

INSTANTIATE_TEST_SUITE_P(Tls, HttpServerTest, testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "WithTls" : "InTheClear"); });

}  // namespace
}  // namespace tandem
