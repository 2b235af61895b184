#include "kvtransfer/nvlink/descriptor_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/ids.h"

namespace tandem {
namespace {

constexpr int kRetryMs = 10;

// An abstract address: a zero byte, then the name, without an end mark.
struct SocketAddress {
  sockaddr_un address = {};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

SocketAddress MakeAddress(const std::string& name) {
  SocketAddress result;
  result.address.sun_family = AF_UNIX;
  const size_t length = std::min(name.size(), sizeof(result.address.sun_path) - 1);
  std::memcpy(result.address.sun_path + 1, name.data(), length);
  result.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return result;
}

bool BelongsToThisUser(int socket) {
  ucred credentials = {};
  socklen_t size = sizeof(credentials);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 && credentials.uid == geteuid();
}

// A message of one byte that carries one descriptor.
struct DescriptorMessage {
  DescriptorMessage() {
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
  }
  char byte = 'd';
  iovec part = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header = {};
};

void SendDescriptor(int socket, int fd) {
  DescriptorMessage message;
  cmsghdr* control = CMSG_FIRSTHDR(&message.header);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(control), &fd, sizeof(int));
  sendmsg(socket, &message.header, MSG_NOSIGNAL);  // A client that is gone again needs no answer.
}

absl::Status SystemError(absl::string_view call) {
  return absl::InternalError(absl::StrCat("descriptor socket: ", call, ": ", strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DescriptorServer>> DescriptorServer::Start(int fd) {
  std::unique_ptr<DescriptorServer> server(new DescriptorServer());
  server->fd_ = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (server->fd_ < 0) return SystemError("fcntl");
  server->listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (server->listener_ < 0) return SystemError("socket");
  server->address_ = absl::StrFormat("tandem-kv-%016x", DrawRandomId());
  const SocketAddress address = MakeAddress(server->address_);
  if (bind(server->listener_, address.get(), address.size) != 0) return SystemError("bind");
  if (listen(server->listener_, SOMAXCONN) != 0) return SystemError("listen");
  server->stop_event_ = eventfd(0, EFD_CLOEXEC);
  if (server->stop_event_ < 0) return SystemError("eventfd");
  server->thread_ = std::thread([parts = server.get()] { parts->Main(); });
  return server;
}

DescriptorServer::~DescriptorServer() {
  if (thread_.joinable()) {
    eventfd_write(stop_event_, 1);
    thread_.join();
  }
  for (int fd : {fd_, listener_, stop_event_}) {
    if (fd >= 0) close(fd);
  }
}

void DescriptorServer::Main() {
  while (true) {
    pollfd waits[] = {{listener_, POLLIN, 0}, {stop_event_, POLLIN, 0}};
    if (poll(waits, 2, -1) < 0 && errno != EINTR) return;
    if (waits[1].revents != 0) return;
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) {
      // The client is gone, or this process has no descriptor left: they wait in the queue until it has.
      poll(&waits[1], 1, kRetryMs);
      continue;
    }
    if (BelongsToThisUser(client)) SendDescriptor(client, fd_);
    close(client);
  }
}

absl::StatusOr<int> FetchDescriptor(const std::string& address, absl::Duration timeout) {
  auto unavailable = [&](absl::string_view cause) {
    return absl::UnavailableError(absl::StrCat("no GPU memory is offered at \"", address, "\": ", cause,
                                               " (is the peer in this host's network namespace, under this user?)"));
  };
  const int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (client < 0) return SystemError("socket");
  absl::Cleanup close_client = [client] { close(client); };
  const timeval patience = absl::ToTimeval(timeout);
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  const SocketAddress where = MakeAddress(address);
  if (connect(client, where.get(), where.size) != 0) return unavailable(strerror(errno));
  if (!BelongsToThisUser(client)) return unavailable("it belongs to another user");
  DescriptorMessage message;
  const ssize_t got = recvmsg(client, &message.header, MSG_CMSG_CLOEXEC);
  if (got < 0) return unavailable(strerror(errno));
  const cmsghdr* control = got == 0 ? nullptr : CMSG_FIRSTHDR(&message.header);
  if (control == nullptr || control->cmsg_type != SCM_RIGHTS) return unavailable("the peer refused");
  // Room for one, rounded up, may hold two: whoever sends as many is no peer of ours.
  if (control->cmsg_len != CMSG_LEN(sizeof(int)) || (message.header.msg_flags & MSG_CTRUNC) != 0) {
    for (size_t i = 0; i < (control->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int extra = -1;
      std::memcpy(&extra, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
      close(extra);
    }
    return unavailable("it sent more than one descriptor");
  }
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(control), sizeof(int));
  return fd;
}

}  // namespace tandem
