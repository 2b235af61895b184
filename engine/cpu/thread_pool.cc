#include "engine/cpu/thread_pool.h"

namespace tandem {
namespace {

constexpr int kSpins = 2000;  // Some microseconds.

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` is no longer `old`: spinning first, then asleep.
template <typename T>
void AwaitChange(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { HelperMain(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  if (threads_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  body_ = &body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  helpers_busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunItems(body);
  for (int busy; (busy = helpers_busy_.load(std::memory_order_acquire)) != 0;) AwaitChange(helpers_busy_, busy);
}

void ThreadPool::RunItems(absl::FunctionRef<void(int64_t)> body) {
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body(i);
}

void ThreadPool::HelperMain() {
  uint32_t seen = 0;
  while (true) {
    AwaitChange(generation_, seen);
    ++seen;  // One generation at a time: the next one starts only after this helper is done.
    if (stopping_.load()) return;
    RunItems(*body_);
    if (helpers_busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) helpers_busy_.notify_all();
  }
}

}  // namespace tandem
