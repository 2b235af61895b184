#include "kvtransfer/frame_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/wire.h"

namespace tandem {
namespace {

constexpr size_t kMaxUnsentBytes = size_t{256} << 20;
constexpr size_t kReadBytes = 64 << 10;

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t size = 0;
};

absl::StatusOr<SocketAddress> Resolve(const std::string& address) {
  size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(absl::StrCat(address, " is not host:port"));
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  int error = getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found);
  if (error != 0) return absl::UnavailableError(absl::StrCat("cannot resolve ", address, ": ", gai_strerror(error)));
  absl::Cleanup free_found = [found] { freeaddrinfo(found); };
  SocketAddress result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.size = found->ai_addrlen;
  return result;
}

absl::StatusOr<int> NewSocket(const SocketAddress& address) {
  int fd = socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

}  // namespace

absl::StatusOr<int> FrameSocket::Connect(const std::string& address) {
  ASSIGN_OR_RETURN(SocketAddress target, Resolve(address));
  ASSIGN_OR_RETURN(int fd, NewSocket(target));
  if (connect(fd, reinterpret_cast<sockaddr*>(&target.storage), target.size) != 0 && errno != EINPROGRESS) {
    absl::Status status = absl::UnavailableError(absl::StrCat("cannot connect to ", address, ": ", strerror(errno)));
    close(fd);
    return status;
  }
  return fd;
}

absl::StatusOr<FrameSocket::Listener> FrameSocket::Listen(const std::string& address) {
  ASSIGN_OR_RETURN(SocketAddress local, Resolve(address));
  ASSIGN_OR_RETURN(int fd, NewSocket(local));
  int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  SocketAddress bound;
  bound.size = sizeof(bound.storage);
  if (bind(fd, reinterpret_cast<sockaddr*>(&local.storage), local.size) != 0 || listen(fd, 128) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&bound.storage), &bound.size) != 0) {
    absl::Status status = absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", strerror(errno)));
    close(fd);
    return status;
  }
  int port = bound.storage.ss_family == AF_INET6 ? ntohs(reinterpret_cast<sockaddr_in6*>(&bound.storage)->sin6_port)
                                                 : ntohs(reinterpret_cast<sockaddr_in*>(&bound.storage)->sin_port);
  return Listener{fd, port};
}

int FrameSocket::Accept(int listener_fd) {
  int fd = accept4(listener_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  return fd;
}

FrameSocket::FrameSocket(EventLoop& loop, int fd, Callbacks callbacks, const std::shared_ptr<const TlsContext>& tls)
    : loop_(loop), fd_(fd), callbacks_(std::move(callbacks)) {
  if (tls != nullptr) tls_ = std::make_unique<TlsStream>(tls, fd);
  loop_.Watch(fd_, EPOLLIN | EPOLLRDHUP, [this](uint32_t events) { OnEvent(events); });
}

FrameSocket::~FrameSocket() {
  *alive_ = false;
  loop_.Unwatch(fd_);
  close(fd_);
}

void FrameSocket::Send(absl::string_view payload) {
  uint32_t size = static_cast<uint32_t>(payload.size());
  unsent_.append(reinterpret_cast<const char*>(&size), sizeof(size));
  unsent_.append(payload.data(), payload.size());
  Flush();
}

void FrameSocket::OnEvent(uint32_t events) {
  std::shared_ptr<bool> alive = alive_;
  if ((events & EPOLLOUT) != 0) Flush();
  const bool can_read = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  if (can_read || read_wants_write_) ReadAll();
  if (!*alive || tls_ == nullptr) return;
  Flush();                                  // It may have waited for what was read.
  if (!tls_->failure().empty()) ReadAll();  // Which tells of it.
}

ssize_t FrameSocket::ReadSome(char* to, size_t room) {
  if (tls_ == nullptr) return read(fd_, to, room);
  const TlsStream::Progress progress = tls_->Read(to, room);
  read_wants_write_ = progress.state == TlsStream::State::kWantsWrite;
  if (progress.state == TlsStream::State::kDone) return static_cast<ssize_t>(progress.bytes);
  if (progress.state == TlsStream::State::kClosed) return 0;
  errno = progress.state == TlsStream::State::kFailed ? EPROTO : EAGAIN;
  return -1;
}

ssize_t FrameSocket::WriteSome(const char* from, size_t size) {
  ssize_t written = -1;
  if (tls_ == nullptr) {
    written = send(fd_, from, size, MSG_NOSIGNAL);
    // ENOTCONN: still connecting.
    write_wants_write_ = written < 0 && (errno == EAGAIN || errno == ENOTCONN);
    if (write_wants_write_) errno = EAGAIN;
    return written;
  }
  const TlsStream::Progress progress = tls_->Write(from, size);
  write_wants_write_ = progress.state == TlsStream::State::kWantsWrite;
  if (progress.state == TlsStream::State::kDone) return static_cast<ssize_t>(progress.bytes);
  errno = write_wants_write_ || progress.state == TlsStream::State::kWantsRead ? EAGAIN : EPROTO;
  return -1;
}

bool FrameSocket::ReadAll() {
  char buffer[kReadBytes];
  while (true) {
    ssize_t size = ReadSome(buffer, sizeof(buffer));
    if (size > 0) {
      received_.append(buffer, size);
      if (!DeliverFrames()) return false;
      continue;
    }
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    const bool failed = tls_ != nullptr && !tls_->failure().empty();
    Close(failed ? tls_->failure() : size == 0 ? "the peer closed the connection" : strerror(errno));
    return false;
  }
}

bool FrameSocket::DeliverFrames() {
  std::shared_ptr<bool> alive = alive_;
  size_t done = 0;
  while (received_.size() - done >= sizeof(uint32_t)) {
    uint32_t size;
    std::memcpy(&size, received_.data() + done, sizeof(size));
    if (size > kMaxLinkFrameBytes) {
      Close(absl::StrCat("the peer announced a frame of ", size, " bytes"));
      return false;
    }
    if (received_.size() - done - sizeof(size) < size) break;
    std::string frame = received_.substr(done + sizeof(size), size);
    done += sizeof(size) + size;
    callbacks_.on_frame(frame);
    if (!*alive) return false;
  }
  received_.erase(0, done);
  return true;
}

void FrameSocket::Flush() {
  while (sent_ < unsent_.size()) {
    ssize_t size = WriteSome(unsent_.data() + sent_, unsent_.size() - sent_);
    if (size > 0) {
      sent_ += size;
      continue;
    }
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) break;
    // The read side reports the loss, so that callers of Send are never closed under their feet.
    unsent_.clear();
    sent_ = 0;
    return;
  }
  unsent_.erase(0, sent_);
  sent_ = 0;
  AwaitEvents();
  if (unsent_.size() > kMaxUnsentBytes) shutdown(fd_, SHUT_RDWR);
}

void FrameSocket::AwaitEvents() {
  const bool awaits_write = read_wants_write_ || (write_wants_write_ && !unsent_.empty());
  if (std::exchange(awaits_write_, awaits_write) == awaits_write) return;
  // What can be read would only wake a read that has to write first.
  loop_.ChangeEvents(fd_, EPOLLRDHUP | (read_wants_write_ ? 0u : EPOLLIN) | (awaits_write ? EPOLLOUT : 0u));
}

void FrameSocket::Close(const std::string& reason) {
  auto on_closed = std::move(callbacks_.on_closed);
  callbacks_.on_closed = nullptr;
  loop_.Unwatch(fd_);
  if (on_closed) on_closed(reason);  // May destroy this.
}

}  // namespace tandem
