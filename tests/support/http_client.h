#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "common/tls/tls_stream.h"

namespace tandem {

struct HttpAnswer {
  int status = 0;                              // 0: the connection ended before an answer.
  std::map<std::string, std::string> headers;  // Names in lower case.
  std::string body;                            // Without the framing of chunks.
};

// One connection to an HTTP server on this machine, byte by byte, so that tests can do what no well-behaved client
// would. Waits end after 10 s.
//
// Thread-safety: not thread-safe.
// Ownership: owns the socket.
class HttpClient {
 public:
  // `address`: host:port of IPv4. Null `tls`: without.
  explicit HttpClient(const std::string& address, std::shared_ptr<const TlsContext> tls = nullptr);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // As much as the server takes; false when it closed.
  bool Send(absl::string_view bytes);
  // A request with the headers that every one needs.
  void SendRequest(absl::string_view method, absl::string_view path, absl::string_view body = "",
                   absl::string_view more_headers = "");
  // The next answer. `head` for one to a HEAD request, which has no body.
  HttpAnswer Read(bool head = false);
  HttpAnswer Ask(absl::string_view method, absl::string_view path, absl::string_view body = "",
                 absl::string_view more_headers = "");
  // Of a stream: the header of the answer first; then each call the next chunk, empty at the end.
  HttpAnswer ReadHead();
  std::string ReadChunk();
  // True when the server closes without another byte.
  bool ReadsEnd();
  // How many bytes can be read before the server closes or stands still for `seconds`.
  size_t DrainFor(int seconds);
  // No more is sent, and the server sees it.
  void Shutdown();

 private:
  // False at the end of the connection.
  bool ReadMore();
  // As recv and send.
  ssize_t Receive(char* to, size_t room);
  ssize_t SendSome(absl::string_view bytes);
  std::optional<std::string> ReadLine();
  std::string ReadBytes(size_t count);

  int socket_ = -1;
  std::unique_ptr<TlsStream> tls_;  // Null: without.
  std::string received_;
};

}  // namespace tandem
