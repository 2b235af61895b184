#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace tandem {

// A fixed set of compute threads for loops inside one engine step.
//
// Between two loops of a step helpers spin for some microseconds, then sleep, so that a step's many
// short loops do not pay for waking up and an idle worker takes no CPU.
//
// Thread-safety: ParallelFor from one thread at a time.
// Ownership: owns its threads; joins them when destroyed.
class ThreadPool {
 public:
  // `num_threads` counts the caller: 1 makes no thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(i) for each i in [0, count), in any order, on all threads; returns when all are
  // done.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body);

 private:
  void HelperMain();
  void RunItems(absl::FunctionRef<void(int64_t)> body);

  std::vector<std::thread> threads_;
  // One loop: body and count are written before generation_ (release) and read after it (acquire).
  const absl::FunctionRef<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<int64_t> next_ = 0;
  alignas(64) std::atomic<uint32_t> generation_ = 0;
  alignas(64) std::atomic<int> helpers_busy_ = 0;
  std::atomic<bool> stopping_ = false;
};

}  // namespace tandem
