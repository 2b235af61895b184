#include "tests/support/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr int kPatienceSeconds = 10;

void SetReadTimeout(int socket, int seconds) {
  const timeval timeout{.tv_sec = seconds};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
}

}  // namespace

HttpClient::HttpClient(const std::string& address, std::shared_ptr<const TlsContext> tls) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) abort();
  socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in endpoint{.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &endpoint.sin_addr);
  SetReadTimeout(socket_, kPatienceSeconds);
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (connect(socket_, reinterpret_cast<sockaddr*>(&endpoint), sizeof(endpoint)) != 0) {
    close(socket_);
    socket_ = -1;
  } else if (tls != nullptr) {
    tls_ = std::make_unique<TlsStream>(std::move(tls), socket_);
  }
}

ssize_t HttpClient::Receive(char* to, size_t room) {
  if (tls_ == nullptr) return recv(socket_, to, room, 0);
  const TlsStream::Progress progress = tls_->Read(to, room);
  return progress.bytes > 0 ? static_cast<ssize_t>(progress.bytes)
                            : (progress.state == TlsStream::State::kClosed ? 0 : -1);
}

ssize_t HttpClient::SendSome(absl::string_view bytes) {
  if (tls_ == nullptr) return send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  return static_cast<ssize_t>(tls_->Write(bytes.data(), bytes.size()).bytes);
}

HttpClient::~HttpClient() {
  if (socket_ >= 0) close(socket_);
}

bool HttpClient::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = SendSome(bytes);
    if (count <= 0) return false;
    bytes.remove_prefix(count);
  }
  return true;
}

void HttpClient::SendRequest(absl::string_view method, absl::string_view path, absl::string_view body,
                             absl::string_view more_headers) {
  Send(absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: test\r\n", more_headers,
                    body.empty() ? "" : absl::StrCat("Content-Length: ", body.size(), "\r\n"), "\r\n", body));
}

bool HttpClient::ReadMore() {
  char buffer[64 << 10];
  const ssize_t count = Receive(buffer, sizeof(buffer));
  if (count <= 0) return false;
  received_.append(buffer, count);
  return true;
}

std::optional<std::string> HttpClient::ReadLine() {
  size_t end;
  while ((end = received_.find("\r\n")) == std::string::npos) {
    if (!ReadMore()) return std::nullopt;
  }
  std::string line = received_.substr(0, end);
  received_.erase(0, end + 2);
  return line;
}

std::string HttpClient::ReadBytes(size_t count) {
  while (received_.size() < count && ReadMore()) {
  }
  std::string bytes = received_.substr(0, count);
  received_.erase(0, bytes.size());
  return bytes;
}

HttpAnswer HttpClient::ReadHead() {
  HttpAnswer answer;
  std::optional<std::string> line = ReadLine();
  if (!line.has_value() || line->size() < 12 || !absl::SimpleAtoi(line->substr(9, 3), &answer.status)) return {};
  while ((line = ReadLine()).has_value() && !line->empty()) {
    const size_t colon = line->find(':');
    if (colon == std::string::npos) return {};
    answer.headers[absl::AsciiStrToLower(line->substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(absl::string_view(*line).substr(colon + 1)));
  }
  return answer;
}

std::string HttpClient::ReadChunk() {
  const std::optional<std::string> line = ReadLine();
  size_t size = 0;
  if (!line.has_value() || !absl::SimpleHexAtoi(*line, &size)) return "";
  std::string chunk = ReadBytes(size);
  ReadLine();
  return chunk;
}

HttpAnswer HttpClient::Read(bool head) {
  HttpAnswer answer = ReadHead();
  size_t length = 0;
  if (answer.headers["transfer-encoding"] == "chunked") {
    for (std::string chunk; !(chunk = ReadChunk()).empty();) answer.body += chunk;
  } else if (absl::SimpleAtoi(answer.headers["content-length"], &length)) {
    if (!head) answer.body = ReadBytes(length);
  } else if (answer.status != 0 && answer.status != 100) {  // Up to the end of the connection.
    while (ReadMore()) {
    }
    answer.body.swap(received_);
  }
  return answer;
}

HttpAnswer HttpClient::Ask(absl::string_view method, absl::string_view path, absl::string_view body,
                           absl::string_view more_headers) {
  SendRequest(method, path, body, more_headers);
  return Read(method == "HEAD");
}

bool HttpClient::ReadsEnd() {
  char byte;
  return received_.empty() && Receive(&byte, 1) == 0;
}

size_t HttpClient::DrainFor(int seconds) {
  SetReadTimeout(socket_, seconds);
  size_t total = received_.size();
  received_.clear();
  while (ReadMore()) {
    total += received_.size();
    received_.clear();
  }
  SetReadTimeout(socket_, kPatienceSeconds);
  return total;
}

void HttpClient::Shutdown() {
  if (tls_ != nullptr) {
    tls_->SayGoodbye();  // And no end of the connection itself.
  } else {
    shutdown(socket_, SHUT_WR);
  }
}

}  // namespace tandem
