#include "engine/rank_group.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(2);  // With a rank that should say or take something.
constexpr absl::Duration kConnectPause = absl::Milliseconds(50);
constexpr absl::Duration kFarewellTimeout = absl::Seconds(5);
constexpr int kRankLostExitCode = 5;
constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 30;
constexpr uint64_t kFarewell = ~uint64_t{0};  // In place of a message's size.

// What a rank says first. Rank 0 answers with its own.
struct Greeting {
  uint64_t magic = 0x74616e64656d5450;
  int32_t rank = 0, size = 0;
};

// In the abstract namespace: nothing is left behind by a process that was killed.
absl::StatusOr<socklen_t> MakeAddress(const std::string& name, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  if (name.size() >= sizeof(address.sun_path)) return absl::InvalidArgumentError("the name of the ranks is too long");
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

// What is sent and not taken for so long is an error, and so is the rest of a message that does not come.
void LimitWaiting(int fd, absl::Duration patience) {
  const timeval limit = absl::ToTimeval(patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
}

// However long it takes.
void AwaitFirstByte(int fd) {
  pollfd entry{fd, POLLIN, 0};
  while (poll(&entry, 1, -1) < 0 && errno == EINTR) continue;
}

bool HasHungUp(int fd) {
  pollfd entry{fd, POLLRDHUP, 0};
  return poll(&entry, 1, 0) > 0 && entry.revents != 0;
}

bool SendAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    bytes -= sent;
  }
  return true;
}

bool ReceiveAll(int fd, void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(fd, at, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    bytes -= got;
  }
  return true;
}

// Of this user: names in the abstract namespace are anybody's.
bool IsOwnPeer(int fd) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

// False when `deadline` passed first.
bool AwaitReadable(int fd, absl::Time deadline) {
  while (true) {
    const absl::Duration left = deadline - Clock::Real().Now();
    pollfd entry{fd, POLLIN, 0};
    const int ready =
        poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(left), 0, 1'000'000)));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

absl::Status Lost(int rank) {
  return absl::UnavailableError(absl::StrCat("rank ", rank, " of this worker is gone; its log says why"));
}

}  // namespace

void RankGroup::EndProcess(const absl::Status& cause) {
  LogError("this rank cannot go on without the others, and ends", {{"cause", cause.message()}});
  _exit(kRankLostExitCode);
}

RankGroup::RankGroup(Options options) : options_(std::move(options)), sockets_(options_.size, -1) {}

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Join(Options options) {
  std::unique_ptr<RankGroup> group(new RankGroup(std::move(options)));
  RETURN_IF_ERROR(group->rank() == 0 ? group->AcceptOthers() : group->ConnectToFirst());
  group->wake_fd_ = eventfd(0, EFD_CLOEXEC);
  if (group->wake_fd_ < 0) return absl::InternalError(absl::StrCat("eventfd: ", strerror(errno)));
  group->watcher_ = std::thread([raw = group.get()] { raw->Watch(); });
  return group;
}

absl::Status RankGroup::AcceptOthers() {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address;
  ASSIGN_OR_RETURN(const socklen_t length, MakeAddress(options_.name, address));
  absl::Status status;
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 64) != 0) {
    status = errno == EADDRINUSE
                 ? absl::AlreadyExistsError(absl::StrCat("another process waits at the socket @", options_.name,
                                                         " of this worker's rank 0; is this topology up already?"))
                 : absl::InternalError(absl::StrCat("cannot wait for other ranks: ", strerror(errno)));
  }
  const absl::Time deadline = Clock::Real().Now() + options_.timeout;
  while (status.ok() && std::count(sockets_.begin() + 1, sockets_.end(), -1) > 0) {
    if (Clock::Real().Now() < deadline && AwaitReadable(listener, deadline)) {
      const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (socket < 0) status = absl::InternalError(absl::StrCat("cannot let a rank in: ", strerror(errno)));
      Welcome(socket);
      continue;
    }
    std::vector<int> missing;
    for (int rank = 1; rank < size(); ++rank) {
      if (sockets_[rank] < 0) missing.push_back(rank);
    }
    status = absl::DeadlineExceededError(absl::StrCat("of this worker's ", size(), " ranks these did not come within ",
                                                      absl::FormatDuration(options_.timeout), ": ",
                                                      absl::StrJoin(missing, ", ")));
  }
  if (listener >= 0) close(listener);
  return status;
}

void RankGroup::Welcome(int socket) {
  if (socket < 0) return;
  Greeting greeting;
  // Whoever connects and says nothing must not hold the others up for long.
  LimitWaiting(socket, absl::Seconds(1));
  const bool is_known =
      IsOwnPeer(socket) && ReceiveAll(socket, &greeting, sizeof(greeting)) && greeting.magic == Greeting().magic;
  if (is_known) {
    Greeting own;
    own.size = size();
    const bool is_known_rank = greeting.size == size() && greeting.rank > 0 && greeting.rank < size();
    int* place = is_known_rank ? &sockets_[greeting.rank] : nullptr;
    // One that came and has ended since makes room for its next life.
    if (place != nullptr && *place >= 0 && HasHungUp(*place)) {
      close(*place);
      *place = -1;
    }
    const bool is_wanted = place != nullptr && *place < 0;
    own.rank = is_wanted ? greeting.rank : -1;
    if (SendAll(socket, &own, sizeof(own)) && is_wanted) {
      *place = socket;
      LimitWaiting(socket, kPatience);
      return;
    }
  }
  close(socket);
}

absl::Status RankGroup::ConnectToFirst() {
  sockaddr_un address;
  ASSIGN_OR_RETURN(const socklen_t length, MakeAddress(options_.name, address));
  const absl::Time deadline = Clock::Real().Now() + options_.timeout;
  while (true) {
    // Not blocking: a listener that takes nobody must not hold this up.
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return absl::InternalError(absl::StrCat("socket: ", strerror(errno)));
    Greeting own, answer;
    own.rank = rank();
    own.size = size();
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && IsOwnPeer(fd) &&
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0 && SendAll(fd, &own, sizeof(own)) &&
        AwaitReadable(fd, deadline) && ReceiveAll(fd, &answer, sizeof(answer))) {
      if (answer.rank == rank()) {
        sockets_[0] = fd;
        LimitWaiting(fd, kPatience);
        return absl::OkStatus();
      }
      close(fd);
      if (answer.size == size()) return absl::AlreadyExistsError(absl::StrCat("another process is rank ", rank()));
      return absl::FailedPreconditionError(
          absl::StrCat("rank 0 of this worker has ", answer.size, " ranks, this one has ", size()));
    }
    close(fd);
    if (Clock::Real().Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank 0 of this worker did not come within ", absl::FormatDuration(options_.timeout)));
    }
    pollfd none;
    poll(&none, 0, static_cast<int>(absl::ToInt64Milliseconds(kConnectPause)));
  }
}

void RankGroup::StopWatching() {
  is_ending_ = true;
  if (!watcher_.joinable()) return;
  const uint64_t one = 1;
  while (write(wake_fd_, &one, sizeof(one)) < 0 && errno == EINTR) continue;
  watcher_.join();
}

void RankGroup::SayFarewell() {
  StopWatching();
  for (int other = 1; other < size(); ++other) SendAll(sockets_[other], &kFarewell, sizeof(kFarewell));
  // They end their streams when they have taken it and have let go of what this rank gave them.
  const absl::Time deadline = Clock::Real().Now() + kFarewellTimeout;
  for (int other = 1; other < size(); ++other) AwaitReadable(sockets_[other], deadline);
}

RankGroup::~RankGroup() {
  StopWatching();
  for (int socket : sockets_) {
    if (socket >= 0) close(socket);
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

void RankGroup::Watch() {
  std::vector<pollfd> entries = {{wake_fd_, POLLIN, 0}};
  std::vector<int> ranks = {-1};
  for (int rank = 0; rank < size(); ++rank) {
    if (sockets_[rank] < 0) continue;
    entries.push_back({sockets_[rank], POLLRDHUP, 0});
    ranks.push_back(rank);
  }
  while (poll(entries.data(), entries.size(), -1) < 0 && errno == EINTR) continue;
  if (entries[0].revents != 0 || is_ending_) return;
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].revents == 0) continue;
    options_.on_lost(Lost(ranks[i]));
    return;
  }
}

absl::Status RankGroup::Send(int rank, absl::string_view message) {
  const uint64_t bytes = message.size();
  if (!SendAll(sockets_[rank], &bytes, sizeof(bytes)) || !SendAll(sockets_[rank], message.data(), bytes)) {
    return Lost(rank);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> RankGroup::ReceiveFrom(int rank, bool is_patient) {
  uint64_t bytes = 0;
  if (is_patient) {
    AwaitFirstByte(sockets_[rank]);
  } else if (!AwaitReadable(sockets_[rank], Clock::Real().Now() + kPatience)) {
    return absl::UnavailableError(
        absl::StrCat("rank ", rank, " of this worker has said nothing for ", absl::FormatDuration(kPatience)));
  }
  if (!ReceiveAll(sockets_[rank], &bytes, sizeof(bytes))) return Lost(rank);
  if (bytes == kFarewell) {
    is_ending_ = true;
    return std::nullopt;
  }
  if (bytes > kMaxMessageBytes) return absl::InternalError("a rank's message is too large");
  std::string message(bytes, '\0');
  if (!ReceiveAll(sockets_[rank], message.data(), bytes)) return Lost(rank);
  return message;
}

absl::Status RankGroup::Broadcast(absl::string_view message) {
  for (int other = 1; other < size(); ++other) RETURN_IF_ERROR(Send(other, message));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> RankGroup::Receive() { return ReceiveFrom(0, /*is_patient=*/true); }

absl::StatusOr<std::vector<std::string>> RankGroup::Exchange(absl::string_view message) {
  std::vector<std::string> messages(size());
  messages[rank()] = std::string(message);
  const auto receive = [&](int from) -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(std::optional<std::string> got, ReceiveFrom(from, /*is_patient=*/false));
    if (!got.has_value()) return Lost(from);
    return *std::move(got);
  };
  if (rank() != 0) {
    RETURN_IF_ERROR(Send(0, message));
    for (int other = 0; other < size(); ++other) {
      if (other == rank()) continue;
      ASSIGN_OR_RETURN(messages[other], receive(0));
    }
    return messages;
  }
  for (int other = 1; other < size(); ++other) {
    ASSIGN_OR_RETURN(messages[other], receive(other));
  }
  for (int other = 1; other < size(); ++other) {
    for (int from = 0; from < size(); ++from) {
      if (from != other) RETURN_IF_ERROR(Send(other, messages[from]));
    }
  }
  return messages;
}

}  // namespace tandem
