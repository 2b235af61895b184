#include "kvtransfer/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "common/clock.h"

namespace tandem {
namespace {

constexpr int kMaxEvents = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<EventLoop>> EventLoop::Create() {
  int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) return absl::ErrnoToStatus(errno, "epoll_create1");
  int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd < 0) {
    close(epoll_fd);
    return absl::ErrnoToStatus(errno, "eventfd");
  }
  std::unique_ptr<EventLoop> loop(new EventLoop(epoll_fd, wake_fd));
  loop->Watch(wake_fd, EPOLLIN, [wake_fd](uint32_t) {
    uint64_t count;
    [[maybe_unused]] ssize_t size = read(wake_fd, &count, sizeof(count));
  });
  return loop;
}

EventLoop::~EventLoop() {
  close(wake_fd_);
  close(epoll_fd_);
}

void EventLoop::Wake() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t size = write(wake_fd_, &one, sizeof(one));
}

void EventLoop::Post(absl::AnyInvocable<void()> work) {
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return;
    posted_.push_back(std::move(work));
  }
  Wake();
}

void EventLoop::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
  }
  Wake();
}

void EventLoop::Watch(int fd, uint32_t events, std::function<void(uint32_t)> on_event) {
  watched_[fd] = std::make_shared<std::function<void(uint32_t)>>(std::move(on_event));
  epoll_event event{.events = events, .data = {.fd = fd}};
  epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event);
}

void EventLoop::ChangeEvents(int fd, uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd, &event);
}

void EventLoop::Unwatch(int fd) {
  epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
  watched_.erase(fd);
}

bool EventLoop::RunPosted() {
  std::vector<absl::AnyInvocable<void()>> work;
  bool stopped;
  {
    absl::MutexLock lock(&mu_);
    work.swap(posted_);
    stopped = stopped_;
  }
  for (auto& item : work) item();
  return !stopped;
}

void EventLoop::Run(absl::Duration interval, std::function<void()> tick, std::function<bool()> poll) {
  const Clock& clock = Clock::Real();
  absl::Time next_tick = clock.Now();
  while (RunPosted()) {
    bool again = poll();
    absl::Duration wait = again ? absl::ZeroDuration() : next_tick - clock.Now();
    int64_t timeout_ms = wait <= absl::ZeroDuration() ? 0 : absl::ToInt64Milliseconds(wait) + 1;
    epoll_event events[kMaxEvents];
    int count = epoll_wait(epoll_fd_, events, kMaxEvents, static_cast<int>(timeout_ms));
    for (int i = 0; i < count; ++i) {
      auto entry = watched_.find(events[i].data.fd);
      if (entry == watched_.end()) continue;  // An earlier callback of this turn unwatched it.
      auto on_event = entry->second;
      (*on_event)(events[i].events);
    }
    // After the sockets: a tick that comes late because this thread was held up must not mistake that for the peers'
    // silence.
    if (absl::Time now = clock.Now(); now >= next_tick) {
      tick();
      next_tick = now + interval;
    }
  }
}

}  // namespace tandem
