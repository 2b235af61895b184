#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace tandem {

// The loop of a link thread: file descriptors, work from other threads, a tick, and polling while
// something is in flight that no descriptor announces.
//
// Thread-safety: Post and Stop from any thread; everything else from the thread in Run, or before
// it. Ownership: borrows the descriptors.
class EventLoop {
 public:
  static absl::StatusOr<std::unique_ptr<EventLoop>> Create();
  ~EventLoop();

  // Runs `work` on the loop's thread, in order of posting. After Stop it is dropped.
  void Post(absl::AnyInvocable<void()> work) ABSL_LOCKS_EXCLUDED(mu_);
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // Calls `on_event` with EPOLLIN etc. while the descriptor is ready.
  void Watch(int fd, uint32_t events, std::function<void(uint32_t)> on_event);
  void ChangeEvents(int fd, uint32_t events);
  void Unwatch(int fd);

  // `tick` every `interval`; `poll` in each turn: true when it wants the next turn without sleep.
  void Run(absl::Duration interval, std::function<void()> tick, std::function<bool()> poll);

 private:
  EventLoop(int epoll_fd, int wake_fd) : epoll_fd_(epoll_fd), wake_fd_(wake_fd) {}
  // Runs posted work; false once stopped.
  bool RunPosted() ABSL_LOCKS_EXCLUDED(mu_);
  void Wake();

  const int epoll_fd_, wake_fd_;
  // Co-owners: a callback that is running while it unwatches itself.
  absl::flat_hash_map<int, std::shared_ptr<std::function<void(uint32_t)>>> watched_;
  absl::Mutex mu_;
  std::vector<absl::AnyInvocable<void()>> posted_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace tandem
