#include "engine/constraint/format_thread.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/units.h"

namespace tandem {
namespace {

// Room for a rule of each few bytes of the largest format, one within the other. Only what is used is memory.
constexpr size_t kStackBytes = size_t{512} << 20;

}  // namespace

int FormatThread::EnsureThread() {
  if (has_thread_) return 0;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  const auto main = [](void* self) -> void* {
    static_cast<FormatThread*>(self)->Main();
    return nullptr;
  };
  const int error = pthread_create(&thread_, &attributes, main, this);
  pthread_attr_destroy(&attributes);
  has_thread_ = error == 0;
  return error;
}

FormatThread::~FormatThread() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (!has_thread_) return;
  }
  pthread_join(thread_, nullptr);
}

std::shared_ptr<FormatJob> FormatThread::Start(std::shared_ptr<const OutputFormat> format,
                                               std::vector<TokenId> output) {
  auto job = std::make_shared<FormatJob>(std::move(format), std::move(output));
  absl::MutexLock lock(&mu_);
  if (const int error = EnsureThread(); error != 0) {
    absl::MutexLock job_lock(&job->mu_);
    job->result_ = absl::FailedPreconditionError(
        absl::StrCat("response_format: needs a thread with a stack of ", FormatBytes(kStackBytes),
                     " of address space, which cannot be made: ", strerror(error)));
    return job;
  }
  // Those whose requests have ended: they may be many, while one takes long.
  std::erase_if(jobs_, [](const std::shared_ptr<FormatJob>& waiting) { return waiting.use_count() == 1; });
  jobs_.push_back(job);
  return job;
}

std::optional<FormatJob::Result> FormatJob::TakeResult() {
  absl::MutexLock lock(&mu_);
  return std::exchange(result_, std::nullopt);
}

void FormatThread::Main() {
  while (true) {
    std::shared_ptr<FormatJob> job;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &FormatThread::HasNews));
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    if (job.use_count() == 1) continue;  // Its request has ended.
    FormatJob::Result result = Compile(*job);
    absl::MutexLock lock(&job->mu_);
    job->result_ = std::move(result);
  }
}

FormatJob::Result FormatThread::Compile(const FormatJob& job) {
  if (compiler_.ok() && *compiler_ == nullptr) {
    compiler_ = [this]() -> absl::StatusOr<std::unique_ptr<ConstraintCompiler>> {
      absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = checkpoint_.LoadTokenizer();
      if (!tokenizer.ok()) {
        return absl::FailedPreconditionError(
            absl::StrCat("response_format: needs the model's tokenizer: ", tokenizer.status().message()));
      }
      return ConstraintCompiler::Create(**tokenizer, checkpoint_.config());
    }();
  }
  if (!compiler_.ok()) return compiler_.status();
  ASSIGN_OR_RETURN(std::unique_ptr<TokenConstraint> constraint, (*compiler_)->Compile(*job.format_));
  RETURN_IF_ERROR(constraint->Accept(job.output_));
  return constraint;
}

}  // namespace tandem
