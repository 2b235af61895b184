#pragma once

#include <pthread.h>

#include <deque>
#include <memory>
#include <optional>
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

// A format that is being compiled, or has been.
//
// Thread-safety: thread-safe.
// Ownership: shared by the thread that compiles it and whoever waits for it; without the latter it is not compiled.
class FormatJob {
 public:
  using Result = absl::StatusOr<std::unique_ptr<TokenConstraint>>;
  FormatJob(std::shared_ptr<const OutputFormat> format, std::vector<TokenId> output)
      : format_(std::move(format)), output_(std::move(output)) {}

  // What the answer begins with; the constraint has accepted it.
  const std::vector<TokenId>& output() const { return output_; }
  // Once, when it is done; nothing before. Errors as of ConstraintCompiler.
  std::optional<Result> TakeResult() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class FormatThread;
  const std::shared_ptr<const OutputFormat> format_;
  const std::vector<TokenId> output_;
  absl::Mutex mu_;
  std::optional<Result> result_ ABSL_GUARDED_BY(mu_);
};

// Compiles the formats of an engine's requests on a thread of its own: one may take seconds, the first one waits for
// the vocabulary, and those nested deeply need more stack than a thread usually has.
//
// Thread-safety: thread-safe after construction.
// Ownership: owns the thread and the compiler; borrows the checkpoint.
class FormatThread {
 public:
  explicit FormatThread(const Checkpoint& checkpoint) : checkpoint_(checkpoint), compiler_(nullptr) {}
  // Waits for the format that is being compiled, which nothing can cut short; those that wait are never done.
  ~FormatThread();
  FormatThread(const FormatThread&) = delete;
  FormatThread& operator=(const FormatThread&) = delete;

  // Compiles `format`, and takes it through `output`, which an answer begins with. FAILED_PRECONDITION, as the job's
  // result: there can be no such thread now.
  std::shared_ptr<FormatJob> Start(std::shared_ptr<const OutputFormat> format, std::vector<TokenId> output)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Begins with the first format. Not 0: why it cannot, as errno; the next format tries again.
  int EnsureThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Main() ABSL_LOCKS_EXCLUDED(mu_);
  FormatJob::Result Compile(const FormatJob& job);
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); }

  const Checkpoint& checkpoint_;
  absl::StatusOr<std::unique_ptr<ConstraintCompiler>> compiler_;  // The thread's; not there before the first format.
  absl::Mutex mu_;
  std::deque<std::shared_ptr<FormatJob>> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool has_thread_ ABSL_GUARDED_BY(mu_) = false;
  pthread_t thread_{};  // Where there is one.
};

}  // namespace tandem
