#pragma once

// Boost.Asio shows here: for http_server.cc and http_connection.cc only.

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/http/http_message.h"
#include "router/http/http_server.h"

namespace tandem {

class HttpConnection;

// What the connections of a server share. The server's thread only.
struct HttpConnections {
  const HttpServer::Options& options;
  HttpHandler& handler;
  absl::flat_hash_map<HttpConnection*, std::shared_ptr<HttpConnection>> open;
  // Have output of this turn.
  std::vector<std::shared_ptr<HttpConnection>> to_flush;
  // A connection reads into it and parses from it; only what is left of a turn is copied.
  std::array<char, 64 << 10> read_buffer;
  std::string date;             // As header fields have it.
  size_t unfinished_bytes = 0;  // Of bodies that are not whole.
  bool stopping = false;

  void FlushAll();
};

// One connection: reads requests, one after the other, and sends the answers.
//
// Nothing is buffered for a connection that is idle, and a token costs one system call: it is sent at once from the
// turn in which it came, and only what the kernel does not take waits for the socket.
//
// Thread-safety: the server's thread only.
// Ownership: owned by HttpConnections::open and by waits at the socket. Owns its exchange, and is owned by it until
// that is over.
class HttpConnection final : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpConnections& shared);
  ~HttpConnection();

  void Start();
  // Answers with an error, and closes when the client has had time to read it.
  void Refuse(int status, absl::string_view message);
  // Sends what can be sent.
  void Flush();
  // Enforces the timeouts.
  void CheckTimes(absl::Time now);
  // No request after the one that is answered.
  void EndAfterThis();
  // Whoever answers is told that the client is gone.
  void Close();

 private:
  class Exchange;
  class Parser;

  void AwaitReadable();
  void OnReadable();
  // Parses requests until one is not whole or is being answered; returns what is left.
  absl::string_view Parse(absl::string_view bytes);
  // As Parse, of what waits.
  void ParseInput();
  // What is wrong with the request that is being parsed, as far as Beast does not say it.
  std::optional<std::pair<int, absl::string_view>> Objection() const;
  size_t unparsed() const { return input_.size() - input_begin_; }
  void CountBody(size_t bytes);
  void HandleParsed();
  void Append(absl::string_view output);
  void ScheduleFlush();
  size_t unsent() const { return output_.size() - sent_; }
  void AppendHead(int status, absl::string_view content_type, absl::string_view more);
  void FinishExchange();
  void Linger();
  // TLS has failed before a request came.
  void EndWithoutTls();
  // As the socket's read_some and write_some, through TLS where there is some. would_block: again when
  // AwaitReadable's, or the socket's own, next event has come.
  size_t ReadSome(boost::system::error_code& error);
  size_t WriteSome(boost::system::error_code& error);

  boost::asio::ip::tcp::socket socket_;
  std::unique_ptr<TlsStream> tls_;                            // Null: in the clear.
  bool read_wants_write_ = false, write_wants_read_ = false;  // Of TLS.
  bool read_ended_ = false;                                   // Of TLS: nothing follows what was read.
  HttpConnections& shared_;
  std::unique_ptr<Parser> parser_;      // Of a request that has begun.
  std::shared_ptr<Exchange> exchange_;  // While a request is answered.
  std::string input_;                   // Read; parsed up to input_begin_.
  size_t input_begin_ = 0;
  size_t counted_bytes_ = 0;  // Of this in HttpConnections::unfinished_bytes.
  std::string output_;
  size_t sent_ = 0;  // Of output_.
  bool http10_ = false, keep_alive_ = true, is_head_ = false;
  bool awaits_readable_ = false, awaits_writable_ = false, flush_scheduled_ = false;
  bool lingering_ = false;  // The last answer is out; what the client still sends is read and dropped.
  bool closed_ = false;
  absl::Time since_;       // The request's first byte; else the begin of idleness or lingering.
  absl::Time last_flush_;  // When there was output last, and the socket took some.
};

}  // namespace tandem
