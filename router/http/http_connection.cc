#include "router/http/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"

namespace tandem {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using BoostError = boost::system::error_code;

constexpr absl::string_view kWithoutTls =
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 35\r\n\r\n"
    "This port speaks HTTPS, not HTTP.\r\n";
constexpr absl::Duration kLinger = absl::Seconds(2);
constexpr size_t kKeptOutputBytes = 16 << 10;
// A chunked body ends in at least so many bytes, and Beast 1.81 asserts that it is given them together.
constexpr size_t kLeastChunkBytes = 5;

absl::string_view View(boost::beast::string_view view) { return {view.data(), view.size()}; }

class BeastHeaders final : public HttpHeaders {
 public:
  explicit BeastHeaders(const http::fields& fields) : fields_(fields) {}
  absl::string_view Get(absl::string_view name) const override { return View(fields_[{name.data(), name.size()}]); }

 private:
  const http::fields& fields_;
};

// The path of a target: without scheme and host, which proxies send, and without the query.
absl::string_view PathOf(absl::string_view target) {
  if (const size_t scheme = target.find("://"); scheme != absl::string_view::npos && !absl::StartsWith(target, "/")) {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == absl::string_view::npos ? "/" : target.substr(slash);
  }
  return target.substr(0, target.find('?'));
}

std::pair<int, absl::string_view> Refusal(const BoostError& error) {
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return {431, "the request's header is too large"};
  }
  if (error == http::error::body_limit) return {413, "the request's body is too large"};
  return {400, "this is no HTTP/1.1 request"};
}

}  // namespace

class HttpConnection::Parser final : public http::request_parser<http::string_body> {
 public:
  explicit Parser(const HttpServer::Options& options) {
    eager(true);
    header_limit(static_cast<uint32_t>(options.max_header_bytes));
    body_limit(options.max_body_bytes);
  }
  bool told_to_continue = false;
  size_t header_bytes = 0;  // Beast's own limit is one for each call of put.
};

// The answer to one request.
class HttpConnection::Exchange final : public HttpReply {
 public:
  explicit Exchange(std::shared_ptr<HttpConnection> connection) : connection_(std::move(connection)) {}

  void Send(HttpResponse response) override {
    if (connection_ == nullptr || ended_ || stream_started_) return;
    std::string more = absl::StrCat("Content-Length: ", response.body.size(), "\r\n");
    for (const auto& [name, value] : response.headers) absl::StrAppend(&more, name, ": ", value, "\r\n");
    connection_->AppendHead(response.status, response.content_type, more);
    if (!connection_->is_head_) connection_->Append(response.body);
    ended_ = true;
  }
  void ExpectStream() override { expects_stream_ = true; }
  bool stream_started() const override { return stream_started_; }
  void Write(absl::string_view events) override {
    if (connection_ == nullptr || ended_) return;
    StartStream();
    if (connection_->http10_) {
      connection_->Append(events);
    } else {
      connection_->Append(absl::StrCat(absl::Hex(events.size()), "\r\n"));
      connection_->Append(events);
      connection_->Append("\r\n");
    }
    const size_t most = connection_->shared_.options.max_unsent_bytes;
    if (connection_->unsent() <= most) return;
    const std::shared_ptr<HttpConnection> connection = connection_;
    connection->Flush();  // It may be this turn's output that nobody has tried to send.
    if (connection->unsent() > most) connection->Close();
  }
  void EndStream() override {
    if (connection_ == nullptr || ended_) return;
    StartStream();
    if (!connection_->http10_) connection_->Append("0\r\n\r\n");
    ended_ = true;
    connection_->ScheduleFlush();
  }
  void OnGone(absl::AnyInvocable<void()> callback) override { on_gone_ = std::move(callback); }
  void OnOver(absl::AnyInvocable<void()> callback) override { on_over_ = std::move(callback); }

  bool ended() const { return ended_; }
  bool needs_ping() const { return expects_stream_ && !ended_; }
  void Finish(bool client_left) {
    std::shared_ptr<HttpConnection> connection = std::exchange(connection_, nullptr);
    if (connection == nullptr) return;
    // Whoever answers holds this, and may be held by its callbacks: they end here.
    auto on_gone = std::exchange(on_gone_, nullptr);
    auto on_over = std::exchange(on_over_, nullptr);
    if (client_left && !ended_ && on_gone != nullptr) on_gone();
    if (on_over != nullptr) on_over();
  }

 private:
  void StartStream() {
    if (std::exchange(stream_started_, true)) return;
    if (connection_->http10_) connection_->keep_alive_ = false;  // Its end is the connection's.
    connection_->AppendHead(200, "text/event-stream; charset=utf-8",
                            connection_->http10_ ? "Cache-Control: no-cache\r\n"
                                                 : "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n");
  }

  std::shared_ptr<HttpConnection> connection_;  // Until the answer has left, or the client.
  absl::AnyInvocable<void()> on_gone_, on_over_;
  bool expects_stream_ = false, stream_started_ = false, ended_ = false;
};

void HttpConnections::FlushAll() {
  // Flushing one may begin its next request, and have that answered: it is flushed in the next turn, for others' sake.
  const std::vector<std::shared_ptr<HttpConnection>> connections = std::exchange(to_flush, {});
  for (const auto& connection : connections) connection->Flush();
}

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, HttpConnections& shared)
    : socket_(std::move(socket)), shared_(shared) {
  since_ = last_flush_ = Clock::Real().Now();
}

HttpConnection::~HttpConnection() = default;

void HttpConnection::Start() {
  BoostError error;
  socket_.non_blocking(true, error);
  socket_.set_option(asio::ip::tcp::no_delay(true), error);
  if (shared_.options.tls != nullptr) {
    tls_ = std::make_unique<TlsStream>(shared_.options.tls, socket_.native_handle());
  }
  AwaitReadable();
}

// --- Requests ---

void HttpConnection::AwaitReadable() {
  if (closed_ || std::exchange(awaits_readable_, true)) return;
  const auto event = read_wants_write_ ? asio::ip::tcp::socket::wait_write : asio::ip::tcp::socket::wait_read;
  socket_.async_wait(event, [self = shared_from_this()](const BoostError& error) {
    self->awaits_readable_ = false;
    if (!error) self->OnReadable();
    if (std::exchange(self->write_wants_read_, false)) self->Flush();
  });
}

size_t HttpConnection::ReadSome(BoostError& error) {
  std::array<char, 64 << 10>& buffer = shared_.read_buffer;
  if (tls_ == nullptr) return socket_.read_some(asio::buffer(buffer), error);
  size_t count = 0;
  read_wants_write_ = false;
  while (buffer.size() - count >= TlsStream::kRecordBytes) {
    const TlsStream::Progress progress = tls_->Read(buffer.data() + count, buffer.size() - count);
    count += progress.bytes;
    if (progress.state == TlsStream::State::kDone) continue;
    read_wants_write_ = progress.state == TlsStream::State::kWantsWrite;
    read_ended_ = !read_wants_write_ && progress.state != TlsStream::State::kWantsRead;
    if (count == 0) error = read_ended_ ? BoostError(asio::error::eof) : BoostError(asio::error::would_block);
    break;
  }
  return count;
}

size_t HttpConnection::WriteSome(BoostError& error) {
  const char* from = output_.data() + sent_;
  const size_t size = output_.size() - sent_;
  if (tls_ == nullptr) return socket_.write_some(asio::buffer(from, size), error);
  const TlsStream::Progress progress = tls_->Write(from, size);
  if (progress.state == TlsStream::State::kDone) return progress.bytes;
  write_wants_read_ = progress.state == TlsStream::State::kWantsRead;
  const bool waits = write_wants_read_ || progress.state == TlsStream::State::kWantsWrite;
  error = waits ? BoostError(asio::error::would_block) : BoostError(asio::error::connection_reset);
  return 0;
}

void HttpConnection::OnReadable() {
  if (closed_) return;
  BoostError error;
  const size_t count = ReadSome(error);
  if (error && error != asio::error::would_block) {
    const bool tls_failed = tls_ != nullptr && !tls_->failure().empty();
    if (tls_failed && exchange_ == nullptr && !lingering_) {
      EndWithoutTls();
    } else {
      Close();
    }
    return;
  }
  const absl::string_view bytes(shared_.read_buffer.data(), count);
  if (lingering_) {
    AwaitReadable();
  } else if (exchange_ != nullptr) {  // The requests after this one, or the client's end.
    input_.append(bytes.data(), bytes.size());
    if (unparsed() < shared_.options.max_pipelined_bytes) AwaitReadable();
  } else if (input_.empty()) {
    const absl::string_view rest = Parse(bytes);
    input_.assign(rest.data(), rest.size());
    AwaitReadable();
  } else {
    input_.append(bytes.data(), bytes.size());
    ParseInput();
    AwaitReadable();
  }
  if (read_ended_) Close();  // The socket would not tell of it again.
}

void HttpConnection::ParseInput() {
  std::string input = std::exchange(input_, {});
  const absl::string_view rest = Parse(absl::string_view(input).substr(std::exchange(input_begin_, 0)));
  if (rest.empty()) return;
  input_begin_ = input.size() - rest.size();
  input_ = std::move(input);
  // Seldom enough that each byte is moved once or twice, however many small requests there are.
  if (input_begin_ > input_.size() / 2) input_.erase(0, std::exchange(input_begin_, 0));
}

absl::string_view HttpConnection::Parse(absl::string_view bytes) {
  while (!bytes.empty() && exchange_ == nullptr && !closed_ && !lingering_) {
    if (parser_ == nullptr) {
      parser_ = std::make_unique<Parser>(shared_.options);
      since_ = Clock::Real().Now();
    }
    if (parser_->is_header_done() && parser_->chunked() && bytes.size() < kLeastChunkBytes) break;
    BoostError error;
    const size_t used = parser_->put(asio::buffer(bytes.data(), bytes.size()), error);
    bytes.remove_prefix(used);
    if (!parser_->is_header_done()) parser_->header_bytes += used;
    CountBody(parser_->get().body().size());
    if (error && error != http::error::need_more) {
      const auto [status, message] = Refusal(error);
      Refuse(status, message);
      return {};
    }
    if (const auto objection = Objection(); objection.has_value()) {
      Refuse(objection->first, objection->second);
      return {};
    }
    if (parser_->is_done()) {
      HandleParsed();
    } else if (used == 0) {
      break;
    }
  }
  if (parser_ != nullptr && parser_->is_header_done() && !std::exchange(parser_->told_to_continue, true) &&
      absl::EqualsIgnoreCase(View(parser_->get()[http::field::expect]), "100-continue")) {
    Append("HTTP/1.1 100 Continue\r\n\r\n");
  }
  if (exchange_ == nullptr && bytes.size() > shared_.options.max_header_bytes) {
    Refuse(431, "the request's header is too large");
    return {};
  }
  return bytes;
}

std::optional<std::pair<int, absl::string_view>> HttpConnection::Objection() const {
  if (parser_->header_bytes > shared_.options.max_header_bytes) {
    return std::pair(431, "the request's header is too large");
  }
  if (parser_->is_header_done() && !parser_->chunked() && parser_->get().count(http::field::transfer_encoding) > 0) {
    return std::pair(400, "Transfer-Encoding: only chunked is known here");
  }
  // What came whole is let pass: it holds nothing up, and small requests must not suffer from others' large ones.
  if (!parser_->is_done() && shared_.unfinished_bytes > shared_.options.max_unfinished_bytes) {
    return std::pair(503, "the router is full of requests that are not whole yet");
  }
  return std::nullopt;
}

void HttpConnection::CountBody(size_t bytes) {
  shared_.unfinished_bytes += bytes - std::exchange(counted_bytes_, bytes);
}

void HttpConnection::HandleParsed() {
  const std::unique_ptr<Parser> parser = std::move(parser_);
  CountBody(0);
  http::request<http::string_body>& message = parser->get();
  http10_ = message.version() < 11;
  keep_alive_ = message.keep_alive() && !shared_.stopping;
  is_head_ = message.method() == http::verb::head;
  last_flush_ = Clock::Real().Now();
  exchange_ = std::make_shared<Exchange>(shared_from_this());
  const BeastHeaders headers(message);
  HttpRequest request{std::string(View(message.method_string())), std::string(PathOf(View(message.target()))),
                      std::move(message.body()), headers};
  shared_.handler.Handle(std::move(request), exchange_);
}

// --- Answers ---

void HttpConnection::AppendHead(int status, absl::string_view content_type, absl::string_view more) {
  const absl::string_view reason = View(http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status))));
  Append(absl::StrCat("HTTP/1.1 ", status, " ", reason, "\r\nDate: ", shared_.date, "\r\nContent-Type: ", content_type,
                      "\r\n", more,
                      keep_alive_ ? (http10_ ? "Connection: keep-alive\r\n" : "") : "Connection: close\r\n", "\r\n"));
}

void HttpConnection::Append(absl::string_view output) {
  if (closed_) return;
  if (output_.empty()) last_flush_ = Clock::Real().Now();
  output_.append(output.data(), output.size());
  ScheduleFlush();
}

void HttpConnection::ScheduleFlush() {
  if (!std::exchange(flush_scheduled_, true)) shared_.to_flush.push_back(shared_from_this());
}

void HttpConnection::Flush() {
  flush_scheduled_ = false;
  if (closed_ || awaits_writable_) return;
  if (sent_ < output_.size()) write_wants_read_ = false;
  while (sent_ < output_.size()) {
    BoostError error;
    const size_t count = WriteSome(error);
    if (error == asio::error::would_block) {
      output_.erase(0, std::exchange(sent_, 0));
      if (write_wants_read_) return;  // Goes on with the next read.
      awaits_writable_ = true;
      socket_.async_wait(asio::ip::tcp::socket::wait_write, [self = shared_from_this()](const BoostError& failure) {
        self->awaits_writable_ = false;
        if (!failure) self->Flush();
      });
      return;
    }
    if (error) {
      Close();
      return;
    }
    sent_ += count;
    last_flush_ = Clock::Real().Now();
  }
  output_.clear();
  sent_ = 0;
  if (output_.capacity() > kKeptOutputBytes) output_.shrink_to_fit();
  if (exchange_ != nullptr && exchange_->ended()) FinishExchange();
}

void HttpConnection::FinishExchange() {
  std::exchange(exchange_, nullptr)->Finish(/*client_left=*/false);
  if (!keep_alive_ || shared_.stopping) {
    Linger();
    return;
  }
  since_ = Clock::Real().Now();
  if (unparsed() > 0) ParseInput();
  if (unparsed() < shared_.options.max_pipelined_bytes) AwaitReadable();
}

void HttpConnection::Refuse(int status, absl::string_view message) {
  if (closed_ || lingering_) return;
  keep_alive_ = is_head_ = http10_ = false;
  parser_ = nullptr;
  CountBody(0);
  exchange_ = std::make_shared<Exchange>(shared_from_this());
  exchange_->Send({.status = status, .body = shared_.handler.ErrorBody(status, message)});
}

// --- Ends ---

void HttpConnection::Linger() {
  // Closing while bytes of the client are unread would reset the connection, and may take the answer with it.
  lingering_ = true;
  since_ = Clock::Real().Now();
  input_.clear();
  input_begin_ = 0;
  if (tls_ != nullptr) tls_->SayGoodbye();
  BoostError error;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, error);
  AwaitReadable();
}

void HttpConnection::EndWithoutTls() {
  BoostError error;
  if (tls_->peer_speaks_http()) socket_.write_some(asio::buffer(kWithoutTls.data(), kWithoutTls.size()), error);
  tls_.reset();  // It has said why; what still comes is read and dropped.
  read_ended_ = read_wants_write_ = write_wants_read_ = false;
  output_.clear();
  sent_ = 0;
  Linger();
}

void HttpConnection::EndAfterThis() {
  if (exchange_ == nullptr && output_.empty()) {
    Close();
  } else {
    keep_alive_ = false;
  }
}

void HttpConnection::Close() {
  if (std::exchange(closed_, true)) return;
  const std::shared_ptr<HttpConnection> self = shared_from_this();
  BoostError error;
  socket_.close(error);
  shared_.open.erase(this);
  CountBody(0);
  if (std::shared_ptr<Exchange> exchange = std::exchange(exchange_, nullptr); exchange != nullptr) {
    exchange->Finish(/*client_left=*/true);
  }
}

void HttpConnection::CheckTimes(absl::Time now) {
  const HttpServer::Options& options = shared_.options;
  if (lingering_) {
    if (now - since_ > kLinger) Close();
  } else if (!output_.empty() && now - last_flush_ > options.write_timeout) {
    Close();
  } else if (exchange_ != nullptr) {
    if (exchange_->needs_ping() && now - last_flush_ > options.ping_interval) exchange_->Write(":\n\n");
  } else if (parser_ != nullptr) {
    if (now - since_ > options.request_timeout) Refuse(408, "the request did not come within its time");
  } else if (now - since_ > options.idle_timeout) {
    Close();
  }
}

}  // namespace tandem
