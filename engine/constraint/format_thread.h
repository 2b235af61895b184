#pragma once

#include <pthread.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/ids.h"
#include "common/output_format.h"
#include "engine/constraint/token_constraint.h"
#include "model/checkpoint.h"

namespace tandem {

// Compiles the formats of an engine's requests on a thread of its own: one may take seconds, the first one waits for
// the vocabulary, and those nested deeply need more stack than a thread usually has.
//
// Thread-safety: thread-safe after construction.
// Ownership: owns the thread and the compiler; borrows the checkpoint. Constraints must not outlive it.
class FormatThread {
 public:
  using Result = absl::StatusOr<std::unique_ptr<TokenConstraint>>;
  explicit FormatThread(const Checkpoint& checkpoint);
  // Waits for the format that is being compiled.
  ~FormatThread();
  FormatThread(const FormatThread&) = delete;
  FormatThread& operator=(const FormatThread&) = delete;

  // Compiles `format`, and takes it through `output`, which an answer begins with.
  void Start(uint64_t id, std::shared_ptr<const OutputFormat> format, std::vector<TokenId> output)
      ABSL_LOCKS_EXCLUDED(mu_);
  // What is done since the last call, with the ids that Start was given. Errors as of ConstraintCompiler.
  std::vector<std::pair<uint64_t, Result>> TakeDone() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Job {
    uint64_t id;
    std::shared_ptr<const OutputFormat> format;
    std::vector<TokenId> output;
  };
  void Main() ABSL_LOCKS_EXCLUDED(mu_);
  Result Compile(const Job& job);
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); }

  const Checkpoint& checkpoint_;
  absl::StatusOr<std::unique_ptr<ConstraintCompiler>> compiler_;  // The thread's; not there before the first format.
  absl::Mutex mu_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  std::vector<std::pair<uint64_t, Result>> done_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  pthread_t thread_{};
};

}  // namespace tandem
