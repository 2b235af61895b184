#include "client/load_generator.h"

#include <algorithm>
#include <thread>

#include "absl/synchronization/mutex.h"

namespace tandem {
namespace {

class Run {
 public:
  Run(const LoadPlan& plan, const LoadOptions& options, LoadTarget& target, const Clock& clock,
      const std::function<void(const LoadProgress&)>& on_progress)
      : plan_(plan),
        options_(options),
        target_(target),
        clock_(clock),
        on_progress_(on_progress),
        begin_(clock.Now()),
        records_(plan.requests.size()) {}

  std::vector<RequestRecord> OpenLoop(const std::function<void(absl::Time)>& wait_until) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < plan_.requests.size(); ++i) {
      wait_until(begin_ + plan_.requests[i].due);
      threads.emplace_back([this, i] { Send(i, plan_.requests[i].due); });
    }
    for (std::thread& thread : threads) thread.join();
    return std::move(records_);
  }

  std::vector<RequestRecord> ClosedLoop() {
    std::vector<std::thread> threads;
    for (int i = 0; i < options_.concurrency; ++i) {
      threads.emplace_back([this] {
        for (size_t next = TakeNext(); next < plan_.requests.size(); next = TakeNext())
          Send(next, clock_.Now() - begin_);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return std::move(records_);
  }

 private:
  size_t TakeNext() {
    absl::MutexLock lock(&mu_);
    return next_++;
  }

  void Send(size_t index, absl::Duration due) {
    const PlannedRequest& request = plan_.requests[index];
    const std::vector<TokenId> prompt = MakePrompt(request, options_.vocabulary);
    RequestRecord& record = records_[index];  // This thread's alone.
    record.due = due;
    record.prompt_tokens = request.prompt_tokens;
    record.sent = clock_.Now() - begin_;
    Count([](LoadProgress& progress) { ++progress.sent; });
    record.gaps.reserve(request.output_tokens);
    record.status = target_.Generate(prompt, request.output_tokens, [&](int tokens) {
      if (tokens <= 0) return;
      const absl::Duration now = clock_.Now() - begin_;
      if (record.output_tokens == 0) {
        record.first_token = now;
      } else {
        record.gaps.push_back(now - record.last_token);
      }
      record.gaps.insert(record.gaps.end(), tokens - 1, absl::ZeroDuration());
      record.last_token = now;
      record.output_tokens += tokens;
    });
    if (record.status.ok() && record.output_tokens != request.output_tokens) {
      record.status = absl::DataLossError("another number of tokens came than was asked for");
    }
    Count([&](LoadProgress& progress) {
      ++progress.ended;
      progress.failed += record.status.ok() ? 0 : 1;
    });
  }

  void Count(const std::function<void(LoadProgress&)>& change) {
    absl::MutexLock lock(&mu_);
    change(progress_);
    if (on_progress_ != nullptr) on_progress_(progress_);
  }

  const LoadPlan& plan_;
  const LoadOptions& options_;
  LoadTarget& target_;
  const Clock& clock_;
  const std::function<void(const LoadProgress&)>& on_progress_;
  const absl::Time begin_;
  std::vector<RequestRecord> records_;
  absl::Mutex mu_;
  LoadProgress progress_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

std::vector<RequestRecord> RunLoad(const LoadPlan& plan, const LoadOptions& options, LoadTarget& target,
                                   const Clock& clock, const std::function<void(absl::Time)>& wait_until,
                                   const std::function<void(const LoadProgress&)>& on_progress) {
  Run run(plan, options, target, clock, on_progress);
  return options.arrivals == Arrivals::kClosed ? run.ClosedLoop() : run.OpenLoop(wait_until);
}

}  // namespace tandem
